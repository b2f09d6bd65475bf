// Samples one byte of many patches from their logits: the step between the layers of one byte and of the next, where
// torch runs the layers. Letters: N patches, S bytes a patch, V tokens.
#pragma once

#include <cstdint>

#include "byte_decode/sampling.h"

namespace bgpt {

struct AcceptCall {
    int64_t N, S, V, s;  // s: the position of these logits; V: one of tokens.h
    int32_t eop;
    const float* logits;  // [N, V]
    const int16_t* prefix_tokens;
    const int64_t* max_tokens;
    const uint64_t* rng_streams;
    const uint64_t* byte_offsets;
    const Sampling* sampling;
    int16_t* tokens;  // [N, S]; this and the six above as in ByteDecodeCall of byte_decode.h
    int64_t* counts;
    int64_t* next_tokens;  // [N]: the token at s, whose embedding is the next input
    uint8_t* active;       // [N]: rows that have not ended; the others are not written

    BGPT_HOST_DEVICE Sampling sampling_of(int64_t n) const { return sampling_for(prefix_tokens[n * S + s], *sampling); }
    BGPT_HOST_DEVICE uint64_t byte_offset_of(int64_t n) const { return byte_offsets[n] + static_cast<uint64_t>(s); }

    // Writes row n, for which `sampled` was sampled.
    BGPT_HOST_DEVICE void accept(int64_t n, int32_t sampled) const {
        const int64_t at = n * S + s;
        const Acceptance accepted =
            accept_token(static_cast<int32_t>(s), sampled, prefix_tokens[at], max_tokens[n], eop);
        active[n] = accepted.continues ? 1 : 0;
        counts[n] = accepted.count;
        if (accepted.token < 0) return;
        tokens[at] = static_cast<int16_t>(accepted.token);
        next_tokens[n] = accepted.token;
    }
};

void byte_accept(const AcceptCall& call);

// Everything on the device, `sampling` too. Throws std::runtime_error when the launch fails.
void byte_accept_cuda(const AcceptCall& call, void* stream);

}  // namespace bgpt
