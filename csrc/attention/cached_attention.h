// Causal attention of new tokens over a cache of keys and values, in fp32, with one order of rounding for each token
// and head: the result depends on that token's query and on the keys and values that it sees, on nothing else.
// Letters: T new tokens, H heads, d channels a head, L positions a slot, B slots.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

struct CachedAttention {
    const float* qkv;          // [T, 3, H, d]: queries, keys and values of the new tokens
    void* keys;                // [B, H, d, L]: channels apart, so that the scores of neighbouring keys are one vector
    void* values;              // [B, H, L, d]
    const int64_t* slots;      // [T], each in 0 … B - 1
    const int64_t* positions;  // [T], each in 0 … L - 1; a (slot, position) appears once
    float* y;                  // [T, H, d]
    int64_t T, H, d, L, B;
    bool bf16 = false;  // the cache: keys and values rounded to bf16, else fp32
};

// Puts the new tokens' keys and values into the cache, then attends from each to its slot's positions 0 … its own.
// `isa` must be one that the processor has. Throws std::out_of_range for a slot or position outside the cache.
void cached_attention(const CachedAttention& arguments, int64_t threads, Isa isa);

// The two halves of it: head h of the new tokens [begin, end) into the cache; these tokens at head h, the cache being
// filled.
void put_head(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end);
void attend(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end, Isa isa);

// One for each instruction set, all the same bits.
void attend_portable(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end);
#if defined(__x86_64__)
void attend_avx2(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end);
void attend_avx512(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end);
#endif

}  // namespace bgpt
