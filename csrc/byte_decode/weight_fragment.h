// The weights that a warp of the persistent byte decoder (persistent_body.h) holds in registers, and its products.
#pragma once

#include "byte_decode/persistent_steps.h"

namespace bgpt {

// Eight neighbouring weights, read past the L1 cache: each is used once.
template <class W>
struct Octet {
    uint32_t words[2 * sizeof(W)];

    BGPT_DEVICE float at(int i) const {
        if constexpr (sizeof(W) == 4) return float_from_bits(words[i]);
        return float_from_bits(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
    }

    BGPT_DEVICE void load(const W* from) {
#if defined(__CUDACC__)
        BGPT_UNROLL
        for (int i = 0; i < static_cast<int>(2 * sizeof(W)); i += 4) {
            asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3])
                         : "l"(reinterpret_cast<const uint32_t*>(from) + i));
        }
#else
        std::memcpy(words, from, sizeof words);
#endif
    }

    // A copy that the compiler converts to fp32 anew: kept converted for all rows, bf16 weights would take twice the
    // registers.
    BGPT_DEVICE Octet reloaded() const {
        Octet copy = *this;
#if defined(__CUDACC__)
        BGPT_UNROLL
        for (uint32_t& word : copy.words) asm volatile("" : "+r"(word));
#endif
        return copy;
    }

    BGPT_DEVICE void clear() {
        BGPT_UNROLL
        for (uint32_t& word : words) word = 0;
    }
};

template <class W>
struct Fragment {
    Octet<W> columns[kColumns<W>];
};

// Loads the warp's weights of the outputs from `begin` on.
template <class W, class Grid>
BGPT_DEVICE void fetch(const PersistentBlock<W, Grid>& b, Lanes<Fragment<W>>& fragment, const Matrix<W>& m,
                       int32_t begin) {
    const Task task = task_of(b, m, begin);
    for_each_lane([&](int lane) {
        const int32_t offset = 8 * lane, k = task.segment * m.width + offset;
        const bool counts = offset < m.width && k < m.inputs;
        const W* from = m.weight + (begin + task.first) * m.stride + k;
        BGPT_UNROLL
        for (int c = 0; c < kColumns<W>; ++c) {
            if (counts && c < task.count) {
                fragment[lane].columns[c].load(from + c * m.stride);
            } else {
                fragment[lane].columns[c].clear();
            }
        }
    });
}

// The warp's sums for `rows` rows of inputs.
template <class W, class Grid>
BGPT_DEVICE void multiply(const PersistentBlock<W, Grid>& b, const Lanes<Fragment<W>>& fragment, const Matrix<W>& m,
                          const Task& task, int32_t rows) {
    constexpr int slots = kColumns<W>;
    if (task.count == 0) return;
    const int32_t chunk = chunk_of(b, m);
    BGPT_ROLLED
    for (int32_t r = 0; r < rows; ++r) {
        const float* row = b.inputs() + (r * m.segments + task.segment) * kSegment;
        Lanes<float> products[slots];
        for_each_lane([&](int lane) {
            const Four low = *reinterpret_cast<const Four*>(row + 4 * lane);
            const Four high = *reinterpret_cast<const Four*>(row + kSegment / 2 + 4 * lane);
            const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            BGPT_UNROLL
            for (int c = 0; c < slots; ++c) {
                const Octet<W> weight = fragment[lane].columns[c].reloaded();
                float sum = 0.0f;
                BGPT_UNROLL
                for (int i = 0; i < 8; ++i) sum = fmaf(x[i], weight.at(i), sum);
                products[c][lane] = sum;
            }
        });
        const Lanes<float> totals = lane_sums(products);
        for_each_lane([&](int lane) {
            const int slot = lane / (kLanes / slots);
            if (lane % (kLanes / slots) == 0 && slot < task.count) {
                b.sums()[(r * chunk + task.first + slot) * m.segments + task.segment] = totals[lane];
            }
        });
    }
}

}  // namespace bgpt
