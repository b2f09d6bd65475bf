// The byte decoder of generation, fused: for a batch of patches the S sequential bytes, all layers, their keys and
// values, the head and the choice of each byte in one call. Letters: N patches, S bytes a patch, D width, V = 257.
#pragma once

#include <cstdint>

#include "byte_decode/sampling.h"
#include "byte_decode/transformer.h"

namespace bgpt {

constexpr int32_t kEndOfPatch = 256;
constexpr int32_t kVocabulary = 257;
constexpr int64_t kByteDecodeRows = 128;  // patches whose caches are in memory at once

struct ByteDecoder {
    // `wte` [V, D], fp32, is the head too.
    ByteDecoder(const Transformer& transformer, const float* wte, int64_t S)
        : transformer(transformer),
          S(S),
          wte(wte, wte + kVocabulary * transformer.D),
          head(wte, 1, transformer.D, nullptr, transformer.D, kVocabulary, transformer.precision) {}
    const Transformer& transformer;
    int64_t S;
    std::vector<float> wte;
    PackedLinear head;
};

struct ByteDecode {
    const float* features;  // [N, D], of the patch before each
    int64_t N;
    const int16_t* given;     // [N, S]: tokens that stand whatever the model says; -1 from where it writes
    const int16_t* drafts;    // [N, S], or null: guesses at what it writes; -1 from where there is none
    const bool* verify;       // [N], or null: rows that end behind the first wrong guess
    const int64_t* room;      // [N], 1 … S: bytes after which a patch is cut
    const uint64_t* indices;  // [N]: each file's random stream
    const uint64_t* starts;   // [N]: bytes of the file before the patch
    Sampling sampling;
    int16_t* tokens;  // [N, S]: what stands there; 256 where the model ended the file, and after that 256s
    int64_t* counts;  // [N]: tokens up to the end, that 256 included; -1 where logits are NaN or infinite
    float* logits;    // [N, S, V], or null: of each position that was computed
};

// Patches go through in chunks that stay in the processor's cache; which chunk a patch is in changes none of its bits.
void byte_decode(const ByteDecoder& decoder, const ByteDecode& call, Team& team, Isa isa);

}  // namespace bgpt
