// What follows from a shape, a number of patches and a launch of the persistent byte decoder (persistent_body.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "byte_decode/lanes.h"
#include "byte_decode/persistent.h"
#include "byte_decode/warp_choose.h"
#include "common/host_device.h"

namespace bgpt {

constexpr int32_t kSegment = 256;   // 8 inputs a lane
constexpr int32_t kRowTile = 8;     // patches whose inputs are in shared memory at once
constexpr int32_t kJoinedRows = 2;  // patches up to which attention is part of the projection, by arithmetic

// Outputs that a warp computes at once: their weights, 8 a lane, fit 32 registers.
template <class W>
constexpr int kColumns = sizeof(W) == 2 ? 8 : 4;

BGPT_HOST_DEVICE inline int32_t segments_of(int32_t inputs) { return (inputs + kSegment - 1) / kSegment; }

// Heads whose outputs are one segment of the projection after them: as many as fit, a divisor of all.
BGPT_HOST_DEVICE inline int32_t heads_a_group(const PersistentShape& shape) {
    const int32_t d = shape.D / shape.H;
    int32_t heads = 1;
    for (int32_t more = 2; more <= shape.H && more * d <= kSegment; ++more) {
        if (shape.H % more == 0) heads = more;
    }
    return heads;
}

// Computed on the host, so that it takes no registers.
struct PersistentPlan : PersistentShape {
    int32_t heads, groups;  // heads whose outputs are one segment of the projection; such groups
    int32_t joined;         // is attention part of the projection?
    int32_t parts;          // if so: into how many parts each group's outputs of the projection are split
    int32_t sums_at;        // offset of the products in shared memory, in bytes
    int32_t rows_at;        // … and of the state of each row
    int32_t shared;         // bytes of shared memory
};

template <class W>
PersistentPlan plan_of(const PersistentShape& shape, int32_t N, int32_t blocks, int32_t warps) {
    PersistentPlan plan{};
    static_cast<PersistentShape&>(plan) = shape;
    plan.heads = heads_a_group(shape);
    plan.groups = shape.H / plan.heads;
    plan.joined = N <= kJoinedRows && blocks >= plan.groups ? 1 : 0;
    plan.parts = blocks / plan.groups;
    const int32_t segments = std::max({segments_of(shape.F), segments_of(shape.D), plan.groups});
    plan.sums_at = std::max(4 * kRowTile * kSegment * segments, 8 * warps * kLanes * kTokensPerLane);
    plan.rows_at = plan.sums_at + 4 * kRowTile * warps * kColumns<W>;
    plan.shared = plan.rows_at + 8 * kPersistentRows;
    return plan;
}

}  // namespace bgpt
