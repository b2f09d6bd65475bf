// Choosing a token by a warp: the choices of sampling.cpp, its sums over tokens in pieces of 9. They differ in their
// last bits alone, so the choice differs where a draw is within 1e-15 of the border between two tokens.
#pragma once

#include "byte_decode/lanes.h"
#include "byte_decode/sampling.h"
#include "byte_decode/uniform.h"

namespace bgpt {

constexpr int kChoices = 257;
constexpr int kOwn = 9;  // tokens a lane, neighbours

// From values of tokens, in their order, to sums up to each: those of a lane first, then those of the lanes before it.
// Equal neighbours stay equal: a token that adds nothing is never drawn. Returns the sum of all.
BGPT_DEVICE double scanned(Lanes<double> (&value)[kOwn]) {
    BGPT_UNROLL
    for (int i = 1; i < kOwn; ++i) {
        each_lane([&](int lane) { value[i][lane] += value[i - 1][lane]; });
    }
    Lanes<double> before;
    each_lane([&](int lane) { before[lane] = 0; });
    double total = 0;
    for (int other = 0; other < kLanes; ++other) {
        const double sum = from_lane(value[kOwn - 1], other);
        each_lane([&](int lane) {
            if (lane > other) before[lane] += sum;
        });
        total += sum;
    }
    BGPT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        each_lane([&](int lane) { value[i][lane] += before[lane]; });
    }
    return total;
}

// The place of each token by its logit, of equals the lower token first.
BGPT_DEVICE void ranks_of(const Lanes<float> (&logit)[kOwn], Lanes<int> (&rank)[kOwn]) {
    BGPT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        each_lane([&](int lane) { rank[i][lane] = 0; });
    }
    for (int other = 0; other < kLanes; ++other) {
        BGPT_UNROLL
        for (int j = 0; j < kOwn; ++j) {
            const float theirs = from_lane(logit[j], other);
            BGPT_UNROLL
            for (int i = 0; i < kOwn; ++i) {
                each_lane([&](int lane) {
                    const float own = logit[i][lane];
                    rank[i][lane] += theirs > own || (theirs == own && other * kOwn + j < lane * kOwn + i);
                });
            }
        }
    }
}

// How many of the `kept` likeliest tokens top-p keeps. `ranked` has room for kLanes * kOwn values of this warp.
BGPT_DEVICE int crossing(const Lanes<float> (&logit)[kOwn], const Lanes<int> (&rank)[kOwn], float most, int kept,
                         double top_p, double* ranked) {
    Lanes<double> share[kOwn], part;
    sync_lanes();
    BGPT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        each_lane([&](int lane) {
            const double away = static_cast<double>(logit[i][lane]) - static_cast<double>(most);
            ranked[rank[i][lane]] = rank[i][lane] < kept ? exp(away) : 0.0;
        });
    }
    sync_lanes();
    each_lane([&](int lane) { part[lane] = 0; });
    BGPT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        each_lane([&](int lane) { part[lane] += share[i][lane] = ranked[lane * kOwn + i]; });
    }
    const double total = summed(part);
    BGPT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        each_lane([&](int lane) { share[i][lane] /= total; });
    }
    scanned(share);
    Lanes<int> first;
    each_lane([&](int lane) { first[lane] = kept; });
    BGPT_UNROLL
    for (int i = kOwn - 1; i >= 0; --i) {
        each_lane([&](int lane) {
            if (share[i][lane] > top_p && lane * kOwn + i + 1 < first[lane]) first[lane] = lane * kOwn + i + 1;
        });
    }
    return smallest(first);
}

// The token that `choose` takes; -1 where a logit is NaN or infinite. `ranked` as above.
BGPT_DEVICE int choose_by_warp(const float* logits, const Sampling& sampling, uint64_t index, uint64_t position,
                               double* ranked) {
    Lanes<float> logit[kOwn], best;
    Lanes<int> bad, token;
    each_lane([&](int lane) {
        bad[lane] = 0;
        best[lane] = -INFINITY;
    });
    BGPT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        each_lane([&](int lane) {
            const bool is_token = lane * kOwn + i < kChoices;
            logit[i][lane] = is_token ? load_fresh(logits + lane * kOwn + i) : -INFINITY;
            bad[lane] |= is_token && !(fabsf(logit[i][lane]) < INFINITY);
            best[lane] = best[lane] < logit[i][lane] ? logit[i][lane] : best[lane];
        });
    }
    if (largest(bad) != 0) return -1;
    const float most = largest(best);
    each_lane([&](int lane) { token[lane] = kChoices; });
    BGPT_UNROLL
    for (int i = kOwn - 1; i >= 0; --i) {
        each_lane([&](int lane) {
            if (logit[i][lane] == most) token[lane] = lane * kOwn + i;
        });
    }
    if (sampling.temperature == 0) return smallest(token);

    const bool use_top_k = sampling.top_k > 0 && sampling.top_k < kChoices;
    Lanes<int> rank[kOwn];
    int kept = kChoices;
    if (use_top_k || sampling.top_p < 1) {
        ranks_of(logit, rank);
        if (use_top_k) kept = static_cast<int>(sampling.top_k);
        if (sampling.top_p < 1) kept = crossing(logit, rank, most, kept, sampling.top_p, ranked);
    } else {
        BGPT_UNROLL
        for (int i = 0; i < kOwn; ++i) {
            each_lane([&](int lane) { rank[i][lane] = lane * kOwn + i < kChoices ? 0 : kChoices; });
        }
    }
    Lanes<double> score[kOwn], part;
    each_lane([&](int lane) { part[lane] = 0; });
    BGPT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        each_lane([&](int lane) {
            const double away = static_cast<double>(logit[i][lane]) - static_cast<double>(most);
            score[i][lane] = rank[i][lane] < kept ? exp(away / sampling.temperature) : 0.0;
            part[lane] += score[i][lane];
        });
    }
    const double total = summed(part);
    BGPT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        each_lane([&](int lane) { score[i][lane] /= total; });
    }
    const double sum = scanned(score);
    const double draw = uniform(sampling.seed, index, position) * sum;
    each_lane([&](int lane) { token[lane] = kChoices; });
    BGPT_UNROLL
    for (int i = kOwn - 1; i >= 0; --i) {
        each_lane([&](int lane) {
            // The second condition counts only where rounding has put the draw at the sum of all.
            if (score[i][lane] > draw || score[i][lane] >= sum) token[lane] = lane * kOwn + i;
        });
    }
    return smallest(token);
}

}  // namespace bgpt
