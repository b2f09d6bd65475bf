#include "cached_attention/cached_attention.h"

#include <algorithm>
#include <vector>

#include "common/check_index.h"
#include "common/threads.h"

#define BGPT_KERNELS "cached_attention/kernels.h"
#include "common/each_isa.h"

namespace bgpt {
namespace {

template <class T>
void store_keys_values_as(const CachedAttention& a, int64_t h, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
        const float* key = a.qkv + ((t * 3 + 1) * a.H + h) * a.d;
        const float* value = a.qkv + ((t * 3 + 2) * a.H + h) * a.d;
        const int64_t head = a.slots[t] * a.H + h;
        T* keys = static_cast<T*>(a.keys) + head * a.d * a.L + a.positions[t];
        for (int64_t i = 0; i < a.d; ++i) store(key[i], keys + i * a.L);
        T* values = static_cast<T*>(a.values) + (head * a.L + a.positions[t]) * a.d;
        for (int64_t i = 0; i < a.d; ++i) store(value[i], values + i);
    }
}

}  // namespace

void store_keys_values(const CachedAttention& a, int64_t h, int64_t begin, int64_t end) {
    const auto store_as = a.bf16 ? store_keys_values_as<uint16_t> : store_keys_values_as<float>;
    store_as(a, h, begin, end);
}

void attend(const CachedAttention& a, int64_t h, int64_t begin, int64_t end, Isa isa) {
    BGPT_DISPATCH(isa, attend_tokens)(a, h, begin, end);
}

int64_t attended_positions(const CachedAttention& a) {
    int64_t total = a.T;
    for (int64_t t = 0; t < a.T; ++t) total += a.positions[t];
    return total;
}

void cached_attention(const CachedAttention& a, int64_t threads, Isa isa) {
    for (int64_t t = 0; t < a.T; ++t) {
        check_index("cached_attention: slots", a.slots[t], a.B, ", the cache's size");
        check_index("cached_attention: positions", a.positions[t], a.L, ", the cache's size");
    }
    // Each thread gets about 2^19 multiplications at least: for fewer, starting a thread costs more than it saves.
    const int64_t cost = std::max<int64_t>(1, (attended_positions(a) + a.T) * a.d / std::max<int64_t>(1, a.T));
    const int64_t grain = (int64_t{1} << 19) / cost + 1;
    parallel_for(a.H, threads, grain / std::max<int64_t>(1, a.T) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h) store_keys_values(a, h, 0, a.T);
    });
    // Heads outside, tokens inside: the tokens of one sequence read its keys from the processor's cache.
    parallel_for(a.H * a.T, threads, grain, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t h = begin / a.T, stop = std::min(end, (h + 1) * a.T);
            attend(a, h, begin - h * a.T, stop - h * a.T, isa);
            begin = stop;
        }
    });
}

}  // namespace bgpt
