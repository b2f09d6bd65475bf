#include "byte_decode/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace bgpt {
namespace {

constexpr double kDropped = -std::numeric_limits<double>::infinity();

// Puts kDropped for what top-k drops, then for what top-p drops of the rest: each token behind those whose sum is over
// top_p already.
void filter(const Sampling& sampling, Scratch& scratch) {
    auto& scores = scratch.scores;
    const int64_t V = static_cast<int64_t>(scores.size());
    const bool use_top_k = sampling.top_k > 0 && sampling.top_k < V;
    if (!use_top_k && sampling.top_p >= 1) return;
    scratch.order.resize(V);
    std::iota(scratch.order.begin(), scratch.order.end(), 0);
    std::stable_sort(scratch.order.begin(), scratch.order.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    int64_t kept = use_top_k ? sampling.top_k : V;
    if (sampling.top_p < 1) {
        scratch.ranked.resize(V);
        double total = 0;
        for (int64_t i = 0; i < kept; ++i) {
            total += scratch.ranked[i] = std::exp(scores[scratch.order[i]] - scores[scratch.order[0]]);
        }
        double sum = scratch.ranked[0] / total;
        int64_t crossing = 1;
        while (crossing < kept && !(sum > sampling.top_p)) sum += scratch.ranked[crossing++] / total;
        kept = crossing;
    }
    for (int64_t i = kept; i < V; ++i) scores[scratch.order[i]] = kDropped;
}

}  // namespace

int32_t choose(const float* logits, int64_t V, const Sampling& sampling, uint64_t index, uint64_t position,
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
    // Sums of shares in the order of the tokens, as cumsum of a softmax has them.
    double sum = 0;
    for (double& score : scores) score = sum += score / total;
    const double draw = uniform(sampling.seed, index, position) * sum;
    // The second condition counts only where rounding has put the draw at the sum of all.
    const auto chosen = std::find_if(scores.begin(), scores.end(),
                                     [&](double cumulative) { return cumulative > draw || cumulative >= sum; });
    return static_cast<int32_t>(chosen - scores.begin());
}

}  // namespace bgpt
