// The body of packed_linear for one instruction set; included by common/each_isa.h, which defines BGPT_BF16_DOT for
// AVX512_BF16. Tiles of ROWS x VECTORS vectors of sums stay in registers for a block of kBlockDepth inputs; a panel's
// block stays in the first-level cache for kChunkRows rows. Every tile does the same to each of its elements.
namespace bgpt::BGPT_ISA {
namespace {

constexpr int64_t ROWS = BGPT_VEC == 2 ? 8 : 4;
constexpr int64_t VECTORS = BGPT_VEC == 2 ? 3 : 2;
constexpr int64_t COLUMNS = VECTORS * Vec::width;
static_assert(kPanel % COLUMNS == 0);

// One input in fp32.
struct Float32 {
    using Input = float;
    using Stored = float;
    static constexpr int64_t step = 1;
    using Weight = Vec;
    using Factor = Vec;
    BGPT_INLINE static Weight weight(const float* p) { return load(p); }
    BGPT_INLINE static Factor factor(const float* p) { return broadcast(*p); }
    BGPT_INLINE static Vec add(Vec sum, Factor x, Weight w) { return fma(x, w, sum); }
};

// A pair of inputs in bf16; the product of the odd one is added first.
struct Bf16 {
    using Input = uint16_t;
    using Stored = uint16_t;
    static constexpr int64_t step = 2;
#if defined(BGPT_BF16_DOT)
    struct Weight {
        __m512bh v;
    };
    using Factor = Weight;
    BGPT_INLINE static Weight weight(const uint16_t* p) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))}; }
    BGPT_INLINE static Factor factor(const uint16_t* p) {
        int32_t pair;
        std::memcpy(&pair, p, sizeof pair);
        return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair))};
    }
    BGPT_INLINE static Vec add(Vec sum, Factor x, Weight w) { return {_mm512_dpbf16_ps(sum.v, x.v, w.v)}; }
#else
    struct Weight {
        Vec odd, even;
    };
    using Factor = Weight;
    BGPT_INLINE static Weight weight(const uint16_t* p) {
        Vec::Words pairs;
        std::memcpy(&pairs, p, sizeof pairs);
        return {as_floats(pairs & 0xffff0000u), as_floats(pairs << 16)};
    }
    BGPT_INLINE static Factor factor(const uint16_t* p) {
        return {broadcast(to_float(p[1])), broadcast(to_float(p[0]))};
    }
    BGPT_INLINE static Vec add(Vec sum, Factor x, Weight w) { return fma(x.even, w.even, fma(x.odd, w.odd, sum)); }
#endif
};

#if defined(BGPT_BF16_DOT)
// The same with int8 weights, which bf16 represents exactly.
struct Int8 : Bf16 {
    using Stored = int8_t;
    BGPT_INLINE static __m512 half(const int8_t* p) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
    }
    BGPT_INLINE static Weight weight(const int8_t* p) { return {_mm512_cvtne2ps_pbh(half(p + 16), half(p))}; }
};
#endif

constexpr int64_t PREFETCH_BYTES = 2048;  // farther than the hardware prefetcher, which stops at a page's end

// The weights of the next block, prefetched while this one is multiplied: `per_input` bytes for each input. Without
// this the first rows of a block would wait for memory, and only the others would find it in the cache.
struct Prefetch {
    const char* at;
    int64_t per_input;
};

// Adds `depth` products to R rows of COLUMNS sums, kPanel apart.
template <class Type, int R>
BGPT_TARGET void panel_tile(const typename Type::Input* x, int64_t x_row, const typename Type::Stored* w, int64_t depth,
                            float* y, Prefetch next) {
    Vec sums[R][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; k += Type::step) {
        if constexpr (R <= 2) {
            const char* ahead = reinterpret_cast<const char*>(w + k * kPanel) + PREFETCH_BYTES;
            const int64_t width = COLUMNS * Type::step * static_cast<int64_t>(sizeof(typename Type::Stored));
            for (int64_t line = 0; line < width; line += 64) __builtin_prefetch(ahead + line);
        }
        if constexpr (R == ROWS) __builtin_prefetch(next.at + k * next.per_input, 0, 2);
        typename Type::Weight weights[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) weights[v] = Type::weight(w + k * kPanel + v * Vec::width * Type::step);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const typename Type::Factor factor = Type::factor(x + r * x_row + k);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = Type::add(sums[r][v], factor, weights[v]);
        }
    }
    add_to_rows(sums, y, kPanel);
}

template <class Type, int R>
BGPT_TARGET void panel_rows(const typename Type::Input* x, int64_t x_row, int64_t rows, const typename Type::Stored* w,
                            int64_t depth, float* y, Prefetch next) {
    for (; rows >= R; rows -= R, x += R * x_row, y += R * kPanel) {
        for (int64_t n = 0; n < kPanel; n += COLUMNS) {
            panel_tile<Type, R>(x, x_row, w + n * Type::step, depth, y + n, next);
            next.at += depth * next.per_input;
        }
    }
    if constexpr (R > 1) {
        if (rows > 0) panel_rows<Type, R - 1>(x, x_row, rows, w, depth, y, next);
    }
}

// int8 weights to bf16, once for many rows.
BGPT_TARGET void widen(const int8_t* w, int64_t count, uint16_t* out) {
    int64_t i = 0;
#if defined(BGPT_BF16_DOT)
    for (; i + 32 <= count; i += 32) {
        _mm512_storeu_si512(out + i, reinterpret_cast<__m512i>(Int8::weight(w + i).v));
    }
#endif
    for (; i < count; ++i) bgpt::store(static_cast<float>(w[i]), out + i);
}

BGPT_TARGET void apply_epilogue(const PackedLinearCall& call, int64_t m, int64_t rows, int64_t panel,
                                const float* sums) {
    const PackedLinear& a = *call.linear;
    const int64_t first = panel * kPanel, columns = std::min(kPanel, a.N - first);
    for (int64_t r = 0; r < rows; ++r, sums += kPanel) {
        const int64_t at = (m + r) * call.y_row + first;
        for (int64_t n = 0; n < columns; n += Vec::width) {
            const int64_t count = std::min(Vec::width, columns - n);
            Vec y = load(sums + n);
            if (a.precision == Precision::int8) {
                y = fma(load(a.scale.get() + first + n), y, load(a.bias.get() + first + n));
            }
            if (call.epilogue == Epilogue::add) y = load(static_cast<const float*>(call.y) + at + n, count) + y;
            if (call.epilogue != Epilogue::gelu) {
                store(static_cast<float*>(call.y) + at + n, y, count);
                continue;
            }
            y = gelu(y);
            if (a.precision == Precision::float32) {
                store(static_cast<float*>(call.y) + at + n, y, count);
                continue;
            }
            uint16_t* out = static_cast<uint16_t*>(call.y) + at + n;
#if defined(BGPT_BF16_DOT)
            _mm256_mask_storeu_epi16(out, first_lanes(count), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(y.v)));
#else
            float lanes[Vec::width];
            store(lanes, y);
            for (int64_t i = 0; i < count; ++i) bgpt::store(lanes[i], out + i);
#endif
        }
    }
}

template <class Type>
BGPT_TARGET void panels(const PackedLinearCall& call, int64_t begin, int64_t end) {
    using Input = typename Type::Input;
    const PackedLinear& a = *call.linear;
    const bool is_int8 = a.precision == Precision::int8;
    alignas(64) float sums[kChunkRows * kPanel];
    alignas(64) Input wide[Type::step == 2 ? kBlockDepth * kPanel : 1];
    for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t m = 0; m < call.M; m += kChunkRows) {
            const int64_t rows = std::min(kChunkRows, call.M - m);
            for (int64_t r = 0; r < rows; ++r) {
                if (is_int8) {
                    std::fill_n(sums + r * kPanel, kPanel, 0.0f);
                } else {
                    std::copy_n(a.bias.get() + panel * kPanel, kPanel, sums + r * kPanel);
                }
            }
            const Input* x = static_cast<const Input*>(call.x) + m * call.x_row;
            for (int64_t k = 0; k < a.depth; k += kBlockDepth) {
                const int64_t depth = std::min(kBlockDepth, a.depth - k), at = (panel * a.depth + k) * kPanel;
                const Input* w = reinterpret_cast<const Input*>(a.weight.get()) + at;
                // The block after this one, in equal parts for each tile. Few rows are done before it could arrive.
                const int64_t size = is_int8 ? 1 : static_cast<int64_t>(sizeof(Input)),
                              tiles = rows / ROWS * (kPanel / COLUMNS);
                Prefetch next = {reinterpret_cast<const char*>(a.weight.get()) + (at + depth * kPanel) * size, 0};
                if (rows >= kChunkRows / 2) next.per_input = (kPanel * size + tiles - 1) / tiles;
                if constexpr (Type::step == 2) {
                    if (is_int8) {
#if defined(BGPT_BF16_DOT)
                        if (rows <= ROWS) {
                            const int8_t* stored = reinterpret_cast<const int8_t*>(a.weight.get()) + at;
                            panel_rows<Int8, ROWS>(x + k, call.x_row, rows, stored, depth, sums, next);
                            continue;
                        }
#endif
                        widen(reinterpret_cast<const int8_t*>(a.weight.get()) + at, depth * kPanel, wide);
                        w = wide;
                    }
                }
                panel_rows<Type, ROWS>(x + k, call.x_row, rows, w, depth, sums, next);
            }
            apply_epilogue(call, m, rows, panel, sums);
        }
    }
}

BGPT_TARGET void packed_panels(const PackedLinearCall& call, int64_t begin, int64_t end) {
    if (call.linear->precision == Precision::float32) {
        panels<Float32>(call, begin, end);
    } else {
        panels<Bf16>(call, begin, end);
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
