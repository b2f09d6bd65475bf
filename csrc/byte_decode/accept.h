// The choice of a byte for many patches whose logits are there, and what follows from it: the step between the layers
// of one byte and of the next, where these are a library's. Letters: N patches, S bytes a patch, V = 257.
#pragma once

#include <cstdint>

#include "byte_decode/sampling.h"
#include "common/host_device.h"

namespace bgpt {

struct Accept {
    const float* logits;  // [N, V]
    int64_t N, S, s;      // s: the position of these logits
    const int16_t* given;
    const int64_t* room;
    const uint64_t* indices;
    const uint64_t* starts;
    const Sampling* sampling;
    int16_t* tokens;  // [N, S], these four as ByteDecode of byte_decode.h
    int64_t* counts;
    int64_t* next;   // [N]: the token that stands at s, for the embedding of the next input
    uint8_t* going;  // [N]: rows that have not ended; the others are left as they are

    // How row n is chosen from: what is given needs no draw, but NaN and infinite logits are found all the same.
    BGPT_HOST_DEVICE Sampling sampling_of(int64_t n) const {
        return given[n * S + s] < 0 ? *sampling : Sampling{0.0, 0, 1.0, 0};
    }

    // Takes row n's choice, -1 where there is none.
    BGPT_HOST_DEVICE void take(int64_t n, int32_t chosen) const {
        const int32_t own = given[n * S + s], stands = own < 0 ? chosen : own;
        going[n] = chosen >= 0 && s + 1 < room[n] && (own >= 0 || stands != 256) ? 1 : 0;
        counts[n] = chosen < 0 ? -1 : s + 1;
        if (chosen < 0) return;
        tokens[n * S + s] = static_cast<int16_t>(stands);
        next[n] = stands;
    }
};

void byte_accept(const Accept& call);

// All of it on the device, `sampling` too. Throws std::runtime_error when the launch fails.
void byte_accept_cuda(const Accept& call, void* stream);

}  // namespace bgpt
