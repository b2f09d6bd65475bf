#include "attention/cached_attention.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/bf16.h"
#include "common/threads.h"

namespace bgpt {

void attend(const CachedAttention& a, int64_t h, int64_t begin, int64_t end, Isa isa) {
    switch (isa) {
#if defined(__x86_64__)
        case Isa::avx512:
            return attend_avx512(a, h, begin, end);
        case Isa::avx2:
            return attend_avx2(a, h, begin, end);
#endif
        default:
            return attend_portable(a, h, begin, end);
    }
}

namespace {

template <class T>
void put_as(const CachedAttention& a, int64_t h, int64_t begin, int64_t end) {
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

void put_head(const CachedAttention& a, int64_t h, int64_t begin, int64_t end) {
    a.bf16 ? put_as<uint16_t>(a, h, begin, end) : put_as<float>(a, h, begin, end);
}

namespace {

void check(const char* name, int64_t value, int64_t limit) {
    if (value >= 0 && value < limit) return;
    throw std::out_of_range(std::string("cached_attention: ") + name + ": expected 0 to " + std::to_string(limit - 1) +
                            ", the cache's size, got " + std::to_string(value));
}

}  // namespace

void cached_attention(const CachedAttention& a, int64_t threads, Isa isa) {
    int64_t seen = 0;
    for (int64_t t = 0; t < a.T; ++t) {
        check("slots", a.slots[t], a.B);
        check("positions", a.positions[t], a.L);
        seen += a.positions[t] + 1;
    }
    // Pieces of about 2^19 multiplications, below which a thread costs more than it gives.
    const int64_t cost = std::max<int64_t>(1, (seen + a.T) * a.d / std::max<int64_t>(1, a.T));
    const int64_t least = (int64_t{1} << 19) / cost + 1;
    parallel_for(a.H, threads, least / std::max<int64_t>(1, a.T) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h) put_head(a, h, 0, a.T);
    });
    // Heads outside, tokens inside: tokens of one sequence find its keys in the cache of the processor.
    parallel_for(a.H * a.T, threads, least, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t h = begin / a.T, stop = std::min(end, (h + 1) * a.T);
            attend(a, h, begin - h * a.T, stop - h * a.T, isa);
            begin = stop;
        }
    });
}

}  // namespace bgpt
