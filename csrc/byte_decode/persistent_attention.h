// Attention of the persistent byte decoder (persistent_body.h), which a warp computes for a row and a head.
#pragma once

#include "byte_decode/persistent_block.h"

namespace bgpt {

constexpr int32_t kChannelsAtOnce = 32;   // of a query and a key that a lane loads before it waits
constexpr int32_t kPositionsAtOnce = 16;  // values that a lane loads before it waits

// The product of FOURS · 4 channels of a query and a key, added to `sum`: all are loaded before the first is
// multiplied.
template <int FOURS>
BGPT_DEVICE float with_channels(float sum, const float* query, const float* key) {
    Four q[FOURS], k[FOURS];
    BGPT_UNROLL
    for (int i = 0; i < FOURS; ++i) {
        q[i] = load_four_fresh(query + 4 * i);
        k[i] = load_four_fresh(key + 4 * i);
    }
    BGPT_UNROLL
    for (int i = 0; i < FOURS; ++i) {
        sum = fmaf(q[i].x, k[i].x, sum);
        sum = fmaf(q[i].y, k[i].y, sum);
        sum = fmaf(q[i].z, k[i].z, sum);
        sum = fmaf(q[i].w, k[i].w, sum);
    }
    return sum;
}

// The scores of head h of row n at positions 0 … s, one a lane; the other lanes have -infinity.
template <class W, class Grid>
BGPT_DEVICE Lanes<float> attention_scores(const PersistentBlock<W, Grid>& b, const float* keys, int32_t n, int32_t h,
                                          int32_t s) {
    const int32_t D = b.plan.D, d = D / b.plan.H;
    const float* const query = b.workspace.q + n * D + h * d;
    const float scale = 1.0f / sqrtf(static_cast<float>(d));
    Lanes<float> score;
    for_each_lane([&](int lane) {
        // Lanes without a position do as that of s: the warp does not branch.
        const float* const key = keys + (lane < s ? lane : s) * D;
        float sum = 0.0f;
        int32_t i = 0;
        BGPT_ROLLED
        for (; i + kChannelsAtOnce <= d; i += kChannelsAtOnce) {
            sum = with_channels<kChannelsAtOnce / 4>(sum, query + i, key + i);
        }
        BGPT_ROLLED
        for (; i < d; i += 8) sum = with_channels<2>(sum, query + i, key + i);
        score[lane] = lane > s ? -INFINITY : scale * sum;
    });
    return score;
}

// Attention of head h of row n at position s, by a warp: calls store(channel, y).
template <class W, class Grid, class Store>
BGPT_DEVICE void attend_head(const PersistentBlock<W, Grid>& b, int32_t layer, int32_t n, int32_t h, int32_t s,
                             const Store& store) {
    const int32_t D = b.plan.D, d = D / b.plan.H;
    const float* const values = b.cached(b.workspace.values, layer, n) + h * d;
    Lanes<float> weight = attention_scores(b, b.cached(b.workspace.keys, layer, n) + h * d, n, h, s);
    const float max_score = lane_max(weight);
    for_each_lane([&](int lane) { weight[lane] = lane > s ? 0.0f : expf(weight[lane] - max_score); });
    const float total = lane_sum(weight);
    // A lane has two neighbouring channels.
    BGPT_ROLLED
    for (int32_t first = 0; first < d; first += 2 * kLanes) {
        Lanes<Two> y;
        for_each_lane([&](int lane) { y[lane] = {0.0f, 0.0f}; });
        BGPT_ROLLED
        for (int32_t from = 0; from <= s; from += kPositionsAtOnce) {
            Lanes<Two> value[kPositionsAtOnce];
            for_each_lane([&](int lane) {
                const int32_t channel = first + 2 * lane < d ? first + 2 * lane : d - 2;
                BGPT_UNROLL
                for (int i = 0; i < kPositionsAtOnce; ++i) {
                    const int32_t j = from + i < s ? from + i : s;
                    value[i][lane] = load_two_fresh(values + j * D + channel);
                }
            });
            BGPT_UNROLL
            for (int i = 0; i < kPositionsAtOnce; ++i) {
                const float weight_of_key = lane_value(weight, static_cast<int>(from + i));
                for_each_lane([&](int lane) {
                    const float x = fmaf(weight_of_key, value[i][lane].x, y[lane].x);
                    const float z = fmaf(weight_of_key, value[i][lane].y, y[lane].y);
                    y[lane] = from + i <= s ? Two{x, z} : y[lane];
                });
            }
        }
        for_each_lane([&](int lane) {
            if (first + 2 * lane >= d) return;
            store(first + 2 * lane, y[lane].x / total);
            store(first + 2 * lane + 1, y[lane].y / total);
        });
    }
}

// Attention as a phase of its own: a warp a row and head, over all blocks.
template <class W, class Grid>
BGPT_DEVICE void attend(const PersistentBlock<W, Grid>& b, int32_t layer, int32_t s) {
    const int32_t D = b.plan.D, H = b.plan.H, d = D / H, warps = b.grid.warps * b.grid.blocks;
    for (int32_t i = b.grid.warp * b.grid.blocks + b.grid.block; i < b.call.N * H; i += warps) {
        const int32_t n = i / H, h = i % H;
        attend_head(b, layer, n, h, s, [&](int32_t c, float y) { b.workspace.attended[n * D + h * d + c] = y; });
    }
}

// Attention of the block's group of heads, into `inputs`.
template <class W, class Grid>
BGPT_DEVICE void load_attended(const PersistentBlock<W, Grid>& b, int32_t layer, int32_t s, int32_t row, int32_t rows) {
    const int32_t d = b.plan.D / b.plan.H, heads = b.plan.heads, width = heads * d, padding = kSegment - width;
    const int32_t group = b.grid.block % b.plan.groups;
    for (int32_t i = b.grid.warp; i < rows * heads; i += b.grid.warps) {
        const int32_t r = i / heads, j = i % heads;
        attend_head(b, layer, row + r, group * heads + j, s,
                    [&](int32_t c, float y) { b.inputs()[r * kSegment + shared_index(j * d + c)] = y; });
    }
    b.for_each(rows * padding,
               [&](int32_t i) { b.inputs()[i / padding * kSegment + shared_index(width + i % padding)] = 0.0f; });
}

}  // namespace bgpt
