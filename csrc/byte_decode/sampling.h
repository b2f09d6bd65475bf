// Sampling a token from logits, each sequence from a counter-based random stream of its own: the numbers and the order
// of filters are those of kernels/byte_decode/sampling.py.
#pragma once

#include <cstdint>
#include <vector>

#include "common/philox.h"
#include "common/tokens.h"

namespace bgpt {

struct Sampling {
    double temperature;  // 0 takes the likeliest token, of equally likely ones the lowest
    int64_t top_k;       // 0 means off
    double top_p;        // 1 or more means off
    uint64_t seed;
};

// In [0, 1), 53 random bits: a function of the seed, the file's random stream and the byte's offset in the file.
BGPT_HOST_DEVICE inline double uniform(uint64_t seed, uint64_t rng_stream, uint64_t byte_offset) {
    const Words words = philox(seed, {{static_cast<uint32_t>(byte_offset), static_cast<uint32_t>(byte_offset >> 32),
                                       static_cast<uint32_t>(rng_stream), static_cast<uint32_t>(rng_stream >> 32)}});
    return static_cast<double>((uint64_t{words.at[0]} << 32 | words.at[1]) >> 11) * 0x1p-53;
}

// Memory that choose() reuses from call to call.
struct Scratch {
    std::vector<double> scores, ranked;
    std::vector<int32_t> order;
};

// A token 0 … V - 1, a function of the logits and of the arguments alone; -1 where a logit is NaN or infinite.
int32_t choose(const float* logits, int64_t V, const Sampling& sampling, uint64_t rng_stream, uint64_t byte_offset,
               Scratch& scratch);

// How position s of a patch goes on from the token that was sampled there.
struct Acceptance {
    int32_t token;   // -1 where the logits were NaN or infinite
    int32_t count;   // of tokens so far; -1 where the logits were NaN or infinite
    bool continues;  // whether the patch has another position to fill
};

// `prefix_token` is the token that the patch must have there, or -1: then it is the sampled one, of which `eop` ends
// the patch. `sampled` is -1 where the logits are NaN or infinite, which ends the patch in either case.
BGPT_HOST_DEVICE inline Acceptance accept_token(int32_t s, int32_t sampled, int32_t prefix_token, int64_t max_tokens,
                                                int32_t eop) {
    if (sampled < 0) return {-1, -1, false};
    if (prefix_token >= 0) return {prefix_token, s + 1, s + 1 < max_tokens};
    return {sampled, s + 1, s + 1 < max_tokens && sampled != eop};
}

// The sampling of a position: one with a prefix token needs no random number, only the check of its logits.
BGPT_HOST_DEVICE inline Sampling sampling_for(int32_t prefix_token, const Sampling& sampling) {
    return prefix_token < 0 ? sampling : Sampling{0.0, 0, 1.0, 0};
}

}  // namespace bgpt
