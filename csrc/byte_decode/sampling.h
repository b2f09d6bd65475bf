// Choosing a token from logits, each sequence from a counter-based random stream of its own: the numbers and the order
// of filters are those of bgpt_fast/generation/sampling.py.
#pragma once

#include <cstdint>
#include <vector>

namespace bgpt {

struct Sampling {
    double temperature;  // 0 takes the likeliest token, of equals the lower
    int64_t top_k;       // 0 means off
    double top_p;        // 1 or more means off
    uint64_t seed;
};

// In [0, 1), 53 random bits: Philox4x32-10 with the seed as its key and (position, index) as its counter.
// Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
double uniform(uint64_t seed, uint64_t index, uint64_t position);

// Room for choose().
struct Scratch {
    std::vector<double> scores, ranked;
    std::vector<int32_t> order;
};

// A token 0 … V - 1, a function of the logits and of the arguments alone; -1 where a logit is NaN or infinite.
int32_t choose(const float* logits, int64_t V, const Sampling& sampling, uint64_t index, uint64_t position,
               Scratch& scratch);

}  // namespace bgpt
