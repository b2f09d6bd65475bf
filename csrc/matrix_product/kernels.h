// The body of matrix_product for one instruction set; included by common/each_isa.h. Blocks of kDepth terms at most;
// tiles of ROWS x COLUMNS sums stay in registers for a block. b is packed in panels of COLUMNS; rows of a are copied,
// so that their distance is a constant of the code and no multiple of the first-level cache's.
namespace bgpt::BGPT_ISA {
namespace {

constexpr int64_t ROWS = BGPT_VEC == 2 ? 14 : BGPT_VEC == 1 ? 6 : 4;
constexpr int64_t VECTORS = 2;
constexpr int64_t COLUMNS = VECTORS * Vec::width;
constexpr int64_t WIDE = 16;           // distance of the terms of a tile where a's rows are adjacent
constexpr int64_t LONG = kDepth + 16;  // distance of a tile's rows where a's columns are
static_assert(ROWS <= WIDE && kDepth % 16 == 0);

// Adds `depth` products to a tile of R rows and COLUMNS columns of y, N apart, or to `bias` (or zeros) if `is_first`.
// a's rows are ROW apart and its terms TERM; b is packed [depth, COLUMNS]. Only `count` columns are written.
template <int64_t R, int64_t ROW, int64_t TERM>
BGPT_TARGET void product_tile(const float* a, const float* b, int64_t depth, const float* bias, bool is_first, float* y,
                              int64_t N, int64_t count) {
    Vec sums[R][VECTORS];
#pragma GCC unroll 14
    for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] = broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k, a += TERM, b += COLUMNS) {
        Vec columns[VECTORS];
#pragma GCC unroll 2
        for (int64_t v = 0; v < VECTORS; ++v) columns[v] = load(b + v * Vec::width);
#pragma GCC unroll 14
        for (int64_t r = 0; r < R; ++r) {
            const Vec factor = broadcast(a[r * ROW]);
#pragma GCC unroll 2
            for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] = fma(factor, columns[v], sums[r][v]);
        }
    }
#pragma GCC unroll 2
    for (int64_t v = 0; v < VECTORS; ++v) {
        const int64_t lanes = std::min(Vec::width, count - v * Vec::width);
        if (lanes <= 0) continue;
        const Vec start = bias ? load(bias + v * Vec::width, lanes) : broadcast(0.0f);
#pragma GCC unroll 14
        for (int64_t r = 0; r < R; ++r) {
            float* at = y + r * N + v * Vec::width;
            store(at, (is_first ? start : load(at, lanes)) + sums[r][v], lanes);
        }
    }
}

// A tile of `rows` <= R rows.
template <int64_t R, int64_t ROW, int64_t TERM, class... Rest>
BGPT_INLINE void tile_of(int64_t rows, Rest... rest) {
    if (rows == R) {
        product_tile<R, ROW, TERM>(rest...);
    } else if constexpr (R > 1) {
        tile_of<R - 1, ROW, TERM>(rows, rest...);
    }
}

// b [first, first + depth) x [column, column + count) as panels [depth, COLUMNS], with zeros after the last column.
BGPT_TARGET void pack_panels(const MatrixProduct& call, int64_t first, int64_t depth, int64_t column, int64_t count,
                             float* packed) {
    for (int64_t n = 0; n < count; n += COLUMNS, packed += depth * COLUMNS) {
        const int64_t width = std::min(COLUMNS, count - n);
        const float* b = call.b + first * call.b_row + (column + n) * call.b_column;
        if (width < COLUMNS) std::fill_n(packed, depth * COLUMNS, 0.0f);
        if (call.b_column == 1 && width == COLUMNS) {
            for (int64_t k = 0; k < depth; ++k) {
                for (int64_t v = 0; v < COLUMNS; v += Vec::width) {
                    store(packed + k * COLUMNS + v, load(b + k * call.b_row + v));
                }
            }
            continue;
        }
        // Squares that stay in the first-level cache, whichever stride is 1.
        constexpr int64_t square = 16;
        for (int64_t start = 0; start < depth; start += square) {
            const int64_t stop = std::min(start + square, depth);
            for (int64_t i = 0; i < width; ++i) {
                for (int64_t k = start; k < stop; ++k) packed[k * COLUMNS + i] = b[k * call.b_row + i * call.b_column];
            }
        }
    }
}

// a [row, row + rows) x [first, first + depth): rows LONG apart, or tiles of ROWS rows whose terms are WIDE apart.
BGPT_TARGET void copy_rows(const MatrixProduct& call, int64_t row, int64_t rows, int64_t first, int64_t depth,
                           float* copy) {
    const float* a = call.a + row * call.a_row + first * call.a_column;
    if (call.a_column == 1) {
        for (int64_t r = 0; r < rows; ++r, a += call.a_row, copy += LONG) {
            int64_t k = 0;
            for (; k + Vec::width <= depth; k += Vec::width) store(copy + k, load(a + k));
            if (k < depth) store(copy + k, load(a + k, depth - k), depth - k);
        }
        return;
    }
    for (int64_t r = 0; r < rows; r += ROWS, copy += depth * WIDE) {
        const int64_t width = std::min(ROWS, rows - r);
        for (int64_t k = 0; k < depth; ++k) {
            const float* from = a + k * call.a_column + r;
            for (int64_t v = 0; v < width; v += Vec::width) {
                const int64_t count = std::min(Vec::width, width - v);
                store(copy + k * WIDE + v, load(from + v, count), count);
            }
        }
    }
}

BGPT_TARGET void part_of_product(const MatrixProduct& call, Part part) {
    const int64_t K = call.K, blocks = std::max<int64_t>((K + kDepth - 1) / kDepth, 1);
    const int64_t columns = std::min(kColumns, part.last_column - part.first_column);
    const Aligned<float> panels = aligned<float>((columns + COLUMNS - 1) / COLUMNS * COLUMNS * kDepth);
    const Aligned<float> copy = aligned<float>(std::max(kRows * LONG, (kRows / ROWS + 1) * WIDE * kDepth));
    for (int64_t column = part.first_column; column < part.last_column; column += kColumns) {
        const int64_t width = std::min(kColumns, part.last_column - column);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = K * block / blocks, depth = K * (block + 1) / blocks - first;
            pack_panels(call, first, depth, column, width, panels.get());
            for (int64_t row = part.first_row; row < part.last_row; row += kRows) {
                const int64_t rows = std::min(kRows, part.last_row - row);
                copy_rows(call, row, rows, first, depth, copy.get());
                for (int64_t n = 0; n < width; n += COLUMNS) {
                    const float *b = panels.get() + n * depth, *bias = call.bias ? call.bias + column + n : nullptr;
                    const int64_t count = std::min(COLUMNS, width - n);
                    for (int64_t r = 0; r < rows; r += ROWS) {
                        float* y = call.y + (row + r) * call.N + column + n;
                        const int64_t height = std::min(ROWS, rows - r);
                        if (call.a_column == 1) {
                            tile_of<ROWS, LONG, 1>(height, copy.get() + r * LONG, b, depth, bias, block == 0, y, call.N,
                                                   count);
                        } else {
                            tile_of<ROWS, 1, WIDE>(height, copy.get() + r / ROWS * depth * WIDE, b, depth, bias,
                                                   block == 0, y, call.N, count);
                        }
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
