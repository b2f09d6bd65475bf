// Choosing a token from logits, each sequence from a counter-based random stream of its own: the numbers and the order
// of filters are those of kernels/byte_decode/sampling.py.
#pragma once

#include <cstdint>
#include <vector>

#include "byte_decode/uniform.h"

namespace bgpt {

struct Sampling {
    double temperature;  // 0 takes the likeliest token, of equals the lower
    int64_t top_k;       // 0 means off
    double top_p;        // 1 or more means off
    uint64_t seed;
};

// Room for choose().
struct Scratch {
    std::vector<double> scores, ranked;
    std::vector<int32_t> order;
};

// A token 0 … V - 1, a function of the logits and of the arguments alone; -1 where a logit is NaN or infinite.
int32_t choose(const float* logits, int64_t V, const Sampling& sampling, uint64_t index, uint64_t position,
               Scratch& scratch);

}  // namespace bgpt
