// Samples a token by a warp, as choose() of sampling.cpp does; sums over tokens are added lane by lane first. They
// differ in their last bits alone, so the token differs only where the random number is within 1e-15 of the border
// between two tokens.
#pragma once

#include "byte_decode/lanes.h"
#include "byte_decode/sampling.h"

namespace bgpt {

// Neighbouring tokens of a lane, of V in all.
template <int V>
constexpr int kTokensOfLane = (V + kLanes - 1) / kLanes;
constexpr int kTokensPerLane = kTokensOfLane<kVocabSize>;  // at most

// Replaces the values of tokens by their inclusive prefix sums, in the order of the tokens: first within a lane, then
// over the lanes before it. A token of value 0 gets the sum of its predecessor exactly, so that it is never sampled.
// Returns the sum of all.
template <int kPerLane>
BGPT_DEVICE double prefix_sums(Lanes<double> (&value)[kPerLane]) {
    BGPT_UNROLL
    for (int i = 1; i < kPerLane; ++i) {
        for_each_lane([&](int lane) { value[i][lane] += value[i - 1][lane]; });
    }
    Lanes<double> previous_sum;
    for_each_lane([&](int lane) { previous_sum[lane] = 0; });
    double total = 0;
    for (int other = 0; other < kLanes; ++other) {
        const double sum = lane_value(value[kPerLane - 1], other);
        for_each_lane([&](int lane) {
            if (lane > other) previous_sum[lane] += sum;
        });
        total += sum;
    }
    BGPT_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        for_each_lane([&](int lane) { value[i][lane] += previous_sum[lane]; });
    }
    return total;
}

// The rank of each token by its logit; of equal logits the lower token comes first.
template <int kPerLane>
BGPT_DEVICE void token_ranks(const Lanes<float> (&logit)[kPerLane], Lanes<int> (&rank)[kPerLane]) {
    BGPT_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        for_each_lane([&](int lane) { rank[i][lane] = 0; });
    }
    for (int other = 0; other < kLanes; ++other) {
        BGPT_UNROLL
        for (int j = 0; j < kPerLane; ++j) {
            const float other_logit = lane_value(logit[j], other);
            BGPT_UNROLL
            for (int i = 0; i < kPerLane; ++i) {
                for_each_lane([&](int lane) {
                    const float own = logit[i][lane];
                    const bool is_before = other * kPerLane + j < lane * kPerLane + i;
                    // One comparison each way and no short circuit, which would be a branch a pair.
                    rank[i][lane] += is_before ? other_logit >= own : other_logit > own;
                });
            }
        }
    }
}

// How many of the `count` likeliest tokens are left by top-p. `ranked` holds kLanes * kPerLane values of the
// warp.
template <int kPerLane>
BGPT_DEVICE int top_p_count(const Lanes<float> (&logit)[kPerLane], const Lanes<int> (&rank)[kPerLane], float max_logit,
                            int count, double top_p, double* ranked) {
    Lanes<double> probability[kPerLane], part;
    sync_lanes();
    BGPT_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        for_each_lane([&](int lane) {
            const double difference = static_cast<double>(logit[i][lane]) - static_cast<double>(max_logit);
            ranked[rank[i][lane]] = rank[i][lane] < count ? exp(difference) : 0.0;
        });
    }
    sync_lanes();
    for_each_lane([&](int lane) { part[lane] = 0; });
    BGPT_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        for_each_lane([&](int lane) { part[lane] += probability[i][lane] = ranked[lane * kPerLane + i]; });
    }
    const double total = lane_sum(part);
    BGPT_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        for_each_lane([&](int lane) { probability[i][lane] /= total; });
    }
    prefix_sums(probability);
    Lanes<int> first;
    for_each_lane([&](int lane) { first[lane] = count; });
    BGPT_UNROLL
    for (int i = kPerLane - 1; i >= 0; --i) {
        for_each_lane([&](int lane) {
            if (probability[i][lane] > top_p && lane * kPerLane + i + 1 < first[lane])
                first[lane] = lane * kPerLane + i + 1;
        });
    }
    return lane_min(first);
}

// Each lane's logits, -infinity where it has no token. The last lane with tokens loads as many as the others, some of
// them its predecessor's, so that no load depends on a branch: each would be waited for before the next is begun.
template <int V>
BGPT_DEVICE void load_logits(const float* logits, Lanes<float> (&logit)[kTokensOfLane<V>]) {
    constexpr int kPerLane = kTokensOfLane<V>;
    constexpr int kFullLanes = V / kPerLane, kRest = V % kPerLane;
    for_each_lane([&](int lane) {
        const float* const from = logits + (lane < kFullLanes ? lane * kPerLane : V - kPerLane);
        float loaded[kPerLane];
        BGPT_UNROLL
        for (int i = 0; i < kPerLane; ++i) loaded[i] = load_fresh(from + i);
        BGPT_UNROLL
        for (int i = 0; i < kPerLane; ++i) {
            const float last = i < kRest ? loaded[(i + kPerLane - kRest) % kPerLane] : -INFINITY;
            logit[i][lane] = lane < kFullLanes ? loaded[i] : lane == kFullLanes ? last : -INFINITY;
        }
    });
}

// The token that choose() of sampling.h returns; -1 where a logit is NaN or infinite. `ranked` as above.
template <int V>
BGPT_DEVICE int choose_by_warp(const float* logits, const Sampling& sampling, uint64_t rng_stream, uint64_t byte_offset,
                               double* ranked) {
    constexpr int kPerLane = kTokensOfLane<V>;
    Lanes<float> logit[kPerLane], best;
    load_logits<V>(logits, logit);
    Lanes<int> is_bad, token;
    for_each_lane([&](int lane) {
        is_bad[lane] = 0;
        best[lane] = -INFINITY;
    });
    BGPT_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        for_each_lane([&](int lane) {
            const bool is_token = lane * kPerLane + i < V;
            is_bad[lane] |= is_token && !(fabsf(logit[i][lane]) < INFINITY);
            best[lane] = best[lane] < logit[i][lane] ? logit[i][lane] : best[lane];
        });
    }
    if (lane_max(is_bad) != 0) return -1;
    const float max_logit = lane_max(best);
    for_each_lane([&](int lane) { token[lane] = V; });
    BGPT_UNROLL
    for (int i = kPerLane - 1; i >= 0; --i) {
        for_each_lane([&](int lane) {
            if (logit[i][lane] == max_logit) token[lane] = lane * kPerLane + i;
        });
    }
    if (sampling.temperature == 0) return lane_min(token);

    const bool use_top_k = sampling.top_k > 0 && sampling.top_k < V;
    Lanes<int> rank[kPerLane];
    int count = V;
    if (use_top_k || sampling.top_p < 1) {
        token_ranks(logit, rank);
        if (use_top_k) count = static_cast<int>(sampling.top_k);
        if (sampling.top_p < 1) count = top_p_count(logit, rank, max_logit, count, sampling.top_p, ranked);
    } else {
        BGPT_UNROLL
        for (int i = 0; i < kPerLane; ++i) {
            for_each_lane([&](int lane) { rank[i][lane] = lane * kPerLane + i < V ? 0 : V; });
        }
    }
    Lanes<double> score[kPerLane], part;
    for_each_lane([&](int lane) { part[lane] = 0; });
    BGPT_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        for_each_lane([&](int lane) {
            const double difference = static_cast<double>(logit[i][lane]) - static_cast<double>(max_logit);
            score[i][lane] = rank[i][lane] < count ? exp(difference / sampling.temperature) : 0.0;
            part[lane] += score[i][lane];
        });
    }
    const double total = lane_sum(part);
    BGPT_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        for_each_lane([&](int lane) { score[i][lane] /= total; });
    }
    const double sum = prefix_sums(score);
    const double threshold = uniform(sampling.seed, rng_stream, byte_offset) * sum;
    for_each_lane([&](int lane) { token[lane] = V; });
    BGPT_UNROLL
    for (int i = kPerLane - 1; i >= 0; --i) {
        for_each_lane([&](int lane) {
            // The second condition matters only where rounding has made the threshold equal to the sum of all.
            if (score[i][lane] > threshold || score[i][lane] >= sum) token[lane] = lane * kPerLane + i;
        });
    }
    return lane_min(token);
}

}  // namespace bgpt
