// Causal attention of new tokens over a cache of keys and values, in fp32, with one order of rounding for each token
// and head: the result depends on that token's query and on the keys and values that it attends to, on nothing else.
// Letters: T new tokens, H heads, d channels a head, L positions a slot, B slots.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

struct CachedAttention {
    const float* qkv;          // [T, 3, H, d]: queries, keys and values of the new tokens
    void* keys;                // [B, H, d, L]: transposed, so that the scores of neighbouring keys are one vector
    void* values;              // [B, H, L, d]
    const int64_t* slots;      // [T], each in 0 … B - 1
    const int64_t* positions;  // [T], each in 0 … L - 1; a (slot, position) appears once
    float* y;                  // [T, H, d]
    int64_t T, H, d, L, B;
    bool bf16 = false;  // the cache: keys and values rounded to bf16, else fp32
};

// Stores the new tokens' keys and values in the cache, then attends from each token to positions 0 … its own of its
// slot. `isa` must be one that the processor has. Throws std::out_of_range for a slot or position outside the cache.
void cached_attention(const CachedAttention& arguments, int64_t threads, Isa isa);

// Its two halves, for head h and the new tokens [begin, end): storing keys and values; attention over the filled cache.
void store_keys_values(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end);
void attend(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end, Isa isa);

// The positions that all tokens attend to, counted for each token.
int64_t attended_positions(const CachedAttention& arguments);

}  // namespace bgpt
