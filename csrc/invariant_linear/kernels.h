// The body of invariant_linear for one instruction set; included by common/each_isa.h.
//
// The sum of an output element is cut in blocks of KC products. A block is a chain of FMAs over k in ascending order
// that starts at 0; the blocks are added to the bias in ascending order. (One chain over all of K would be as
// reproducible, but errs several times more than a library's product at K = 3072.) The two methods differ only in which
// sums are in registers, so both give the same bits:
// - few rows: sums are in the first-level cache and W is read once, UNROLL of its rows at a time;
// - many rows: W is packed in panels, tiles of ROWS x COLUMNS sums stay in registers for a block.
namespace bgpt::BGPT_ISA {
namespace {

constexpr int64_t ROWS = BGPT_VEC == 2 ? 8 : BGPT_VEC == 1 ? 6 : 4;
constexpr int64_t COLUMNS = (BGPT_VEC == 2 ? 3 : 2) * Vec::width;
constexpr int64_t VECTORS = COLUMNS / Vec::width;
constexpr int64_t UNROLL = BGPT_VEC == 2 ? 8 : 4;
constexpr int64_t KC = 256;                // products of a block: part of the result, the same everywhere
constexpr int64_t NC = 480;                // columns packed at once: KC * NC floats fit the second-level cache
constexpr int64_t MAX_STREAMED_ROWS = 16;  // for more rows it pays to pack W
constexpr int64_t STREAMED_SUMS = 4096;    // fit the first-level cache

// Adds the next `Unroll` products to R rows of sums, `columns` apart.
template <int R, int Unroll>
BGPT_TARGET void stream_block(const float* x, int64_t K, const float* w, int64_t N, float* sums, int64_t columns) {
    Vec factors[R][Unroll];
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < Unroll; ++i) factors[r][i] = broadcast(x[r * K + i]);
    }
    int64_t n = 0;
    for (; n + Vec::width <= columns; n += Vec::width) {
        Vec weights[Unroll];
        for (int i = 0; i < Unroll; ++i) weights[i] = load(w + i * N + n);
        for (int r = 0; r < R; ++r) {
            Vec sum = load(sums + r * columns + n);
            for (int i = 0; i < Unroll; ++i) sum = fma(factors[r][i], weights[i], sum);
            store(sums + r * columns + n, sum);
        }
    }
    if (n < columns) {
        for (int r = 0; r < R; ++r) {
            Vec sum = load(sums + r * columns + n, columns - n);
            for (int i = 0; i < Unroll; ++i) sum = fma(factors[r][i], load(w + i * N + n, columns - n), sum);
            store(sums + r * columns + n, sum, columns - n);
        }
    }
}

template <int Unroll>
BGPT_TARGET void stream_rows(const LinearArguments& a, int64_t k, int64_t first, int64_t columns, float* sums) {
    const float* w = a.weight + k * a.N + first;
    int64_t m = 0;
    for (; m + 2 <= a.M; m += 2) stream_block<2, Unroll>(a.x + m * a.K + k, a.K, w, a.N, sums + m * columns, columns);
    if (m < a.M) stream_block<1, Unroll>(a.x + m * a.K + k, a.K, w, a.N, sums + m * columns, columns);
}

BGPT_TARGET void streamed_rows(const LinearArguments& a, int64_t begin, int64_t end) {
    float sums[STREAMED_SUMS];
    const int64_t step = STREAMED_SUMS / a.M / Vec::width * Vec::width;
    for (int64_t first = begin; first < end; first += step) {
        const int64_t columns = std::min(step, end - first);
        for (int64_t block = 0; block < a.K; block += KC) {
            const int64_t stop = std::min(block + KC, a.K);
            std::fill_n(sums, a.M * columns, 0.0f);
            int64_t k = block;
            for (; k + UNROLL <= stop; k += UNROLL) stream_rows<UNROLL>(a, k, first, columns, sums);
            for (; k < stop; ++k) stream_rows<1>(a, k, first, columns, sums);
            for (int64_t m = 0; m < a.M; ++m) {
                for (int64_t n = 0; n < columns; ++n) a.y[m * a.N + first + n] += sums[m * columns + n];
            }
        }
    }
}

// Adds `depth` products to a tile of R rows: `x` packed [depth, R], `w` packed [depth, COLUMNS], y with N columns.
template <int R>
BGPT_TARGET void tile(const float* x, const float* w, int64_t depth, float* y, int64_t N) {
    Vec sums[R][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec weights[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) weights[v] = load(w + k * COLUMNS + v * Vec::width);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Vec factor = broadcast(x[k * R + r]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(factor, weights[v], sums[r][v]);
        }
    }
    add_to_rows(sums, y, N);
}

// R rows of y against all packed panels of `columns` columns.
template <int R>
BGPT_TARGET void tile_row(const float* x, int64_t K, const float* panels, int64_t depth, float* y, int64_t N,
                          int64_t columns) {
    float factors[KC * R];
    for (int64_t k = 0; k < depth; ++k) {
        for (int r = 0; r < R; ++r) factors[k * R + r] = x[r * K + k];
    }
    for (int64_t n = 0; n < columns; n += COLUMNS, panels += KC * COLUMNS) {
        const int64_t width = std::min(COLUMNS, columns - n);
        if (width == COLUMNS) {
            tile<R>(factors, panels, depth, y + n, N);
            continue;
        }
        float edge[R * COLUMNS] = {};
        for (int r = 0; r < R; ++r) std::copy_n(y + r * N + n, width, edge + r * COLUMNS);
        tile<R>(factors, panels, depth, edge, COLUMNS);
        for (int r = 0; r < R; ++r) std::copy_n(edge + r * COLUMNS, width, y + r * N + n);
    }
}

// Panels [columns / COLUMNS][KC][COLUMNS] of W[k … k + depth, first … first + columns]; missing columns are zeros.
BGPT_TARGET void pack(const float* w, int64_t N, int64_t depth, int64_t columns, float* panels) {
    for (int64_t n = 0; n < columns; n += COLUMNS, panels += KC * COLUMNS) {
        const int64_t width = std::min(COLUMNS, columns - n);
        for (int64_t k = 0; k < depth; ++k) {
            float* out = panels + k * COLUMNS;
            if (width == COLUMNS) {
                for (int64_t v = 0; v < VECTORS; ++v) {
                    store(out + v * Vec::width, load(w + k * N + n + v * Vec::width));
                }
            } else {
                std::copy_n(w + k * N + n, width, out);
                std::fill(out + width, out + COLUMNS, 0.0f);
            }
        }
    }
}

template <int R>
BGPT_TARGET void remaining_rows(const LinearArguments& a, int64_t m, int64_t k, const float* panels, int64_t depth,
                                int64_t first, int64_t columns) {
    if (a.M - m == R) {
        tile_row<R>(a.x + m * a.K + k, a.K, panels, depth, a.y + m * a.N + first, a.N, columns);
    } else if constexpr (R > 1) {
        remaining_rows<R - 1>(a, m, k, panels, depth, first, columns);
    }
}

BGPT_TARGET void tiled_rows(const LinearArguments& a, int64_t begin, int64_t end) {
    std::vector<float> panels((std::min(NC, end - begin) + COLUMNS - 1) / COLUMNS * COLUMNS * KC);
    for (int64_t first = begin; first < end; first += NC) {
        const int64_t columns = std::min(NC, end - first);
        for (int64_t k = 0; k < a.K; k += KC) {
            const int64_t depth = std::min(KC, a.K - k);
            pack(a.weight + k * a.N + first, a.N, depth, columns, panels.data());
            int64_t m = 0;
            for (; m + ROWS <= a.M; m += ROWS) {
                tile_row<ROWS>(a.x + m * a.K + k, a.K, panels.data(), depth, a.y + m * a.N + first, a.N, columns);
            }
            remaining_rows<ROWS - 1>(a, m, k, panels.data(), depth, first, columns);
        }
    }
}

BGPT_TARGET void gelu_columns(const LinearArguments& a, int64_t begin, int64_t end) {
    for (int64_t m = 0; m < a.M; ++m) {
        float* y = a.y + m * a.N;
        int64_t n = begin;
        for (; n + Vec::width <= end; n += Vec::width) store(y + n, gelu(load(y + n)));
        if (n < end) store(y + n, gelu(load(y + n, end - n)), end - n);
    }
}

BGPT_TARGET void linear_columns(const LinearArguments& a, int64_t begin, int64_t end) {
    for (int64_t m = 0; m < a.M; ++m) {
        float* y = a.y + m * a.N;
        if (a.bias != nullptr) {
            std::copy(a.bias + begin, a.bias + end, y + begin);
        } else {
            std::fill(y + begin, y + end, 0.0f);
        }
    }
    a.M <= MAX_STREAMED_ROWS ? streamed_rows(a, begin, end) : tiled_rows(a, begin, end);
    if (a.gelu) gelu_columns(a, begin, end);
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
