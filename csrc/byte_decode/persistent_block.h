// A block of the persistent byte decoder (persistent_body.h): what its launch was called with, its shared memory, and
// loops over its threads.
#pragma once

#include "byte_decode/lanes.h"
#include "byte_decode/persistent.h"
#include "byte_decode/persistent_plan.h"

namespace bgpt {

// The index of input `offset` of a segment in shared memory: a lane's 8 are two runs of 4, without bank conflicts.
BGPT_DEVICE int32_t shared_index(int32_t offset) { return ((offset & 4) << 5) | ((offset & 0xF8) >> 1) | (offset & 3); }

template <class W, class Grid>
struct PersistentBlock {
    const PersistentPlan& plan;
    const PersistentWeights<W>& weights;
    const PersistentCall& call;
    const PersistentWorkspace& workspace;
    Grid& grid;
    unsigned char* const shared;

    // Shared memory: inputs [kRowTile, segments, kSegment], whose memory serves as each warp's scratch for sampling;
    // products [kRowTile, outputs at once, segments]; of each row its last token, and whether it is active.
    BGPT_DEVICE float* inputs() const { return reinterpret_cast<float*>(shared); }
    BGPT_DEVICE double* ranked() const {
        return reinterpret_cast<double*>(shared) + grid.warp * kLanes * kTokensPerLane;
    }
    BGPT_DEVICE float* sums() const { return reinterpret_cast<float*>(shared + plan.sums_at); }
    BGPT_DEVICE int32_t* token() const { return reinterpret_cast<int32_t*>(shared + plan.rows_at); }
    BGPT_DEVICE int32_t* active() const { return token() + kPersistentRows; }

    // The keys or values of a layer and row: [S, D].
    BGPT_DEVICE float* cached(float* of, int32_t layer, int32_t n) const {
        return of + (layer * call.N + n) * plan.S * plan.D;
    }

    // Where the block's part of `outputs` that are split into `all` parts begins.
    BGPT_DEVICE int32_t first_of(int32_t outputs, int32_t part, int32_t all) const { return outputs * part / all; }

    // f(i) for each i below `count`, distributed over the block.
    template <class F>
    BGPT_DEVICE void for_each(int32_t count, const F& f) const {
        for (int32_t first = grid.warp * kLanes; first < count; first += grid.warps * kLanes) {
            for_each_lane([&](int lane) {
                if (first + lane < count) f(first + lane);
            });
        }
    }

    // use(i, load(i)) for each i below `count`, which is not 0. A thread begins BATCH loads before it waits for the
    // first; for that they must not depend on a branch, so that past the end the last one is repeated.
    template <int BATCH, class Load, class Use>
    BGPT_DEVICE void for_each_loaded(int32_t count, const Load& load, const Use& use) const {
        const int32_t threads = grid.warps * kLanes;
        for (int32_t first = grid.warp * kLanes; first < count; first += BATCH * threads) {
            for_each_lane([&](int lane) {
                decltype(load(first)) value[BATCH];
                BGPT_UNROLL
                for (int b = 0; b < BATCH; ++b) {
                    const int32_t i = first + b * threads + lane;
                    value[b] = load(i < count ? i : count - 1);
                }
                BGPT_UNROLL
                for (int b = 0; b < BATCH; ++b) {
                    const int32_t i = first + b * threads + lane;
                    if (i < count) use(i, value[b]);
                }
            });
        }
    }
};

}  // namespace bgpt
