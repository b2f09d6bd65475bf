// The residual stream of the persistent byte decoder (persistent_body.h): what a step reads of it, and its norms.
//
// The phase is looked at before a loop over elements, never inside: a branch there has each load waited for before the
// next one is begun.
#pragma once

#include "byte_decode/persistent_steps.h"

namespace bgpt {

constexpr int kGroupsAtOnce = 4;  // partial sums that are loaded together

// The attention of some groups of heads after their part of the projection: sums that the residual stream at one place
// still has to be added to.
struct PartialSums {
    float of_group[kGroupsAtOnce];

    // Past the last group it is loaded again, and not added.
    template <class W, class Grid>
    BGPT_DEVICE void load_groups(const PersistentBlock<W, Grid>& b, int32_t n, int32_t k) {
        BGPT_UNROLL
        for (int g = 0; g < kGroupsAtOnce; ++g) {
            const int32_t group = g < b.plan.groups ? g : b.plan.groups - 1;
            of_group[g] = load_fresh(b.workspace.partial + (group * b.call.N + n) * b.plan.D + k);
        }
    }

    BGPT_DEVICE float added_to(float x, const PersistentPlan& plan) const {
        BGPT_UNROLL
        for (int g = 0; g < kGroupsAtOnce; ++g) x = g < plan.groups ? x + of_group[g] : x;
        return x;
    }
};

// x plus the sums of the groups that PartialSums leaves out, of which few models have any.
template <class W, class Grid>
BGPT_DEVICE float with_further_groups(float x, const PersistentBlock<W, Grid>& b, int32_t n, int32_t k) {
    BGPT_ROLLED
    for (int32_t group = kGroupsAtOnce; group < b.plan.groups; ++group) {
        x += load_fresh(b.workspace.partial + (group * b.call.N + n) * b.plan.D + k);
    }
    return x;
}

// What a step's product at an output is added to: loaded before the product, added up after it.
struct ProductStart {
    float x, bias, attention_bias;
    PartialSums partial;

    template <class W, class Grid>
    BGPT_DEVICE void load(const PersistentBlock<W, Grid>& b, const Step& step, int32_t n, int32_t c) {
        const LayerWeights<W>& at = b.weights.layers[step.layer];
        const int32_t i = n * b.plan.D + c;
        switch (step.phase) {
            case Phase::qkv:
                bias = at.attn_bias[c];
                return;
            case Phase::project:
                x = load_fresh(b.workspace.x + i);
                bias = at.attn_proj_bias[c];
                return;
            case Phase::mlp_fc:
                bias = at.fc_bias[c];
                return;
            case Phase::mlp_project:
                x = load_fresh(b.workspace.x + i);
                bias = at.mlp_proj_bias[c];
                if (b.plan.joined == 0) return;
                attention_bias = at.attn_proj_bias[c];
                partial.load_groups(b, n, c);
                return;
            default:
                return;
        }
    }

    template <class W, class Grid>
    BGPT_DEVICE float value(const PersistentBlock<W, Grid>& b, const Step& step, int32_t n, int32_t c) const {
        switch (step.phase) {
            case Phase::qkv:
            case Phase::mlp_fc:
                return bias;
            case Phase::project:
                return x + bias;
            case Phase::mlp_project:
                if (b.plan.joined == 0) return x + bias;
                return with_further_groups(partial.added_to(x + attention_bias, b.plan), b, n, c) + bias;
            default:
                return 0.0f;
        }
    }
};

template <class W, class Grid>
BGPT_DEVICE float embedding(const PersistentBlock<W, Grid>& b, int32_t s, int32_t n, int32_t k) {
    const int32_t D = b.plan.D;
    const float* const from = s == 0 ? b.call.features + n * D : b.weights.wte + b.token()[n] * D;
    return from[k] + b.weights.wpe[s * D + k];
}

// Stores the block's part of the embeddings in the residual stream.
template <class W, class Grid>
BGPT_DEVICE void store_embeddings(const PersistentBlock<W, Grid>& b, int32_t s, int32_t row, int32_t rows) {
    const int32_t D = b.plan.D, first = b.first_of(D, b.grid.block, b.grid.blocks);
    const int32_t count = b.first_of(D, b.grid.block + 1, b.grid.blocks) - first;
    b.for_each(rows * count, [&](int32_t i) {
        const int32_t n = row + i / count, k = first + i % count;
        b.workspace.x[n * D + k] = embedding(b, s, n, k);
    });
}

// The memory in `inputs` of input k of a row of `padded` inputs.
template <class W, class Grid>
BGPT_DEVICE float& input_at(const PersistentBlock<W, Grid>& b, int32_t padded, int32_t r, int32_t k) {
    return b.inputs()[r * padded + (k & ~(kSegment - 1)) + shared_index(k & (kSegment - 1))];
}

// The residual stream after attention, as far as PartialSums has it.
template <class W, class Grid>
BGPT_DEVICE float after_attention(const PersistentBlock<W, Grid>& b, const float* bias, int32_t n, int32_t k) {
    PartialSums partial;
    partial.load_groups(b, n, k);
    return partial.added_to(load_fresh(b.workspace.x + n * b.plan.D + k) + bias[k], b.plan);
}

// Loads the residual stream as the input of a step's norm into `inputs`.
template <class W, class Grid>
BGPT_DEVICE void load_residual(const PersistentBlock<W, Grid>& b, const Step& step, int32_t s, int32_t row,
                               int32_t rows) {
    const int32_t D = b.plan.D, padded = segments_of(D) * kSegment, count = rows * D;
    const float* const x = b.workspace.x + row * D;
    const auto store = [&](int32_t i, float value) { input_at(b, padded, i / D, i % D) = value; };
    if (step.phase == Phase::qkv && step.layer == 0) {
        b.template for_each_loaded<4>(count, [&](int32_t i) { return embedding(b, s, row + i / D, i % D); }, store);
    } else if (step.phase != Phase::mlp_fc || b.plan.joined == 0) {
        b.template for_each_loaded<4>(count, [&](int32_t i) { return load_fresh(x + i); }, store);
    } else {
        const float* const bias = b.weights.layers[step.layer].attn_proj_bias;
        const auto load = [&](int32_t i) { return after_attention(b, bias, row + i / D, i % D); };
        b.template for_each_loaded<2>(count, load, store);
        if (b.plan.groups <= kGroupsAtOnce) return;
        // A thread has the same places as before.
        b.for_each(count, [&](int32_t i) {
            float& value = input_at(b, padded, i / D, i % D);
            value = with_further_groups(value, b, row + i / D, i % D);
        });
    }
}

struct NormWeight {
    float weight, bias;
};

// Normalises rows of the residual stream into `inputs`: loaded and scaled by all warps, added up by one a row.
template <class W, class Grid>
BGPT_DEVICE void load_normed(const PersistentBlock<W, Grid>& b, const Step& step, int32_t s, int32_t row, int32_t rows,
                             const float* weight, const float* bias) {
    const int32_t D = b.plan.D, padded = segments_of(D) * kSegment;
    // [rows, 2], where the products of the matrix will be.
    float* const statistics = b.sums();
    load_residual(b, step, s, row, rows);
    b.grid.sync();
    for (int32_t r = b.grid.warp; r < rows; r += b.grid.warps) {
        const auto at = [&](int32_t k) { return input_at(b, padded, r, k); };
        Lanes<float> part;
        for_each_lane([&](int lane) {
            part[lane] = 0.0f;
            for (int32_t k = lane; k < D; k += kLanes) part[lane] += at(k);
        });
        const float mean = lane_sum(part) / static_cast<float>(D);
        for_each_lane([&](int lane) {
            part[lane] = 0.0f;
            for (int32_t k = lane; k < D; k += kLanes) part[lane] += (at(k) - mean) * (at(k) - mean);
        });
        const float scale = 1.0f / sqrtf(lane_sum(part) / static_cast<float>(D) + b.plan.eps);
        for_each_lane([&](int lane) {
            if (lane < 2) statistics[2 * r + lane] = lane == 0 ? mean : scale;
        });
    }
    b.grid.sync();
    b.template for_each_loaded<4>(
        rows * D, [&](int32_t i) { return NormWeight{weight[i % D], bias[i % D]}; },
        [&](int32_t i, const NormWeight& at) {
            float& x = input_at(b, padded, i / D, i % D);
            x = fmaf((x - statistics[2 * (i / D)]) * statistics[2 * (i / D) + 1], at.weight, at.bias);
        });
    const int32_t padding = padded - D;
    b.for_each(rows * padding, [&](int32_t i) { input_at(b, padded, i / padding, D + i % padding) = 0.0f; });
}

}  // namespace bgpt
