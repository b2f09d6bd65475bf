#include "byte_decode/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace bgpt {
namespace {

constexpr double kDropped = -std::numeric_limits<double>::infinity();

// Sets the scores that top-k drops to kDropped, then those that top-p drops of the rest: every token after the one at
// which the sum of probabilities exceeds top_p.
void filter(const Sampling& sampling, Scratch& scratch) {
    auto& scores = scratch.scores;
    const int64_t V = static_cast<int64_t>(scores.size());
    const bool use_top_k = sampling.top_k > 0 && sampling.top_k < V;
    if (!use_top_k && sampling.top_p >= 1) return;
    scratch.order.resize(V);
    std::iota(scratch.order.begin(), scratch.order.end(), 0);
    std::stable_sort(scratch.order.begin(), scratch.order.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    int64_t count = use_top_k ? sampling.top_k : V;
    if (sampling.top_p < 1) {
        scratch.ranked.resize(V);
        double total = 0;
        for (int64_t i = 0; i < count; ++i) {
            total += scratch.ranked[i] = std::exp(scores[scratch.order[i]] - scores[scratch.order[0]]);
        }
        double sum = scratch.ranked[0] / total;
        int64_t crossing = 1;
        while (crossing < count && !(sum > sampling.top_p)) sum += scratch.ranked[crossing++] / total;
        count = crossing;
    }
    for (int64_t i = count; i < V; ++i) scores[scratch.order[i]] = kDropped;
}

}  // namespace

int32_t choose(const float* logits, int64_t V, const Sampling& sampling, uint64_t rng_stream, uint64_t byte_offset,
               Scratch& scratch) {
    for (int64_t v = 0; v < V; ++v) {
        if (!std::isfinite(logits[v])) return -1;
    }
    const int64_t likeliest = std::max_element(logits, logits + V) - logits;
    if (sampling.temperature == 0) return static_cast<int32_t>(likeliest);
    auto& scores = scratch.scores;
    scores.assign(logits, logits + V);
    filter(sampling, scratch);
    const double largest = scores[likeliest];
    double total = 0;
    for (double& score : scores) {
        score = std::exp((score - largest) / sampling.temperature);
        total += score;
    }
    // Cumulative probabilities in the order of the tokens, as cumsum of a softmax computes them.
    double sum = 0;
    for (double& score : scores) score = sum += score / total;
    const double threshold = uniform(sampling.seed, rng_stream, byte_offset) * sum;
    // The second condition matters only where rounding has made the threshold equal to the sum of all.
    const auto chosen = std::find_if(scores.begin(), scores.end(),
                                     [&](double cumulative) { return cumulative > threshold || cumulative >= sum; });
    return static_cast<int32_t>(chosen - scores.begin());
}

}  // namespace bgpt
