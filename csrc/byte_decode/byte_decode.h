// The byte decoder of generation on the CPU, fused: for a batch of patches the S sequential bytes, all layers, their
// keys and values, the head and the sampling of each byte in one call.
// Letters: N patches, S bytes a patch, D width, V tokens.
#pragma once

#include <cstdint>

#include "byte_decode/sampling.h"
#include "byte_decode/transformer.h"

namespace bgpt {

constexpr int64_t kByteDecodeRows = 128;  // patches whose caches are in memory at once

struct ByteDecoder {
    // `wte` [V, D], fp32, is the head too.
    ByteDecoder(const Transformer& transformer, const float* wte, int64_t V, int64_t S)
        : transformer(transformer),
          V(V),
          S(S),
          wte(wte, wte + V * transformer.D),
          head(wte, 1, transformer.D, nullptr, transformer.D, V, transformer.precision) {}
    const Transformer& transformer;
    int64_t V, S;
    std::vector<float> wte;
    PackedLinear head;
};

struct ByteDecodeCall {
    const float* features;  // [N, D], of the patch before each
    int64_t N;
    const int16_t* prefix_tokens;  // [N, S]: tokens that the patch starts with; -1 from where the model writes
    const int16_t* drafts;         // [N, S], or null: guesses at what it writes; -1 where there is none
    const bool* verify;            // [N], or null: rows that stop after the first wrong guess
    const int64_t* max_tokens;     // [N], 1 … S: the length at which a patch is cut
    const uint64_t* rng_streams;   // [N]: each file's random stream
    const uint64_t* byte_offsets;  // [N]: bytes of the file before the patch
    Sampling sampling;
    int32_t eop, fill;  // the token that ends a patch, and the one of the positions after a patch's end
    int16_t* tokens;    // [N, S]: the patch
    int64_t* counts;    // [N]: tokens up to the end, `eop` included; -1 where logits are NaN or infinite
    float* logits;      // [N, S, V], or null: of each position that was computed
    // A smaller decoder of the same V and S, or null: it drafts what no other draft is there for. With its features [N,
    // its D]; `drafted` [N, 2] counts its drafts, and those that were right.
    const ByteDecoder* drafter;
    const float* draft_features;
    int64_t* drafted;
};

// Patches are decoded in chunks that fit the processor's cache; a patch's bits do not depend on its chunk.
void byte_decode(const ByteDecoder& decoder, const ByteDecodeCall& call, Team& team, Isa isa);

}  // namespace bgpt
