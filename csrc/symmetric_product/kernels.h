// The body of symmetric_product for one instruction set; included by common/each_isa.h. Blocks of kMaxDepth terms at
// most; tiles of ROWS x COLUMNS sums stay in registers for a block. Only tiles with an element on or below the diagonal
// are computed. A and B are copied, block by block, into the order in which tiles read them.
namespace bgpt::BGPT_ISA {
namespace {

constexpr int64_t ROWS = BGPT_VEC == 2 ? 8 : 4;
constexpr int64_t VECTORS = 3;
constexpr int64_t COLUMNS = VECTORS * Vec::width;
static_assert(COLUMNS % ROWS == 0);

// Packs `depth` rows of `count` <= kWidth columns of x as [depth, kWidth], with zeros after them.
template <int64_t kWidth>
BGPT_INLINE void pack(const float* x, int64_t row_stride, int64_t column_stride, int64_t depth, int64_t count,
                      float* packed) {
    if (count < kWidth) std::fill_n(packed, depth * kWidth, 0.0f);
    if (column_stride == 1 && count == kWidth) {
        for (int64_t k = 0; k < depth; ++k) std::copy_n(x + k * row_stride, kWidth, packed + k * kWidth);
        return;
    }
    // Squares that stay in the first-level cache, whichever stride is 1.
    constexpr int64_t square = 16;
    for (int64_t first = 0; first < depth; first += square) {
        const int64_t last = std::min(first + square, depth);
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t k = first; k < last; ++k) packed[k * kWidth + i] = x[k * row_stride + i * column_stride];
        }
    }
}

// sums [ROWS, COLUMNS] = a^T b for packed a [depth, ROWS] and b [depth, COLUMNS].
BGPT_TARGET void tile_products(const float* a, const float* b, int64_t depth, float* sums) {
    Vec tile[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int64_t r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; ++v) tile[r][v] = broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k, a += ROWS, b += COLUMNS) {
        Vec columns[VECTORS];
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; ++v) columns[v] = load(b + v * Vec::width);
#pragma GCC unroll 8
        for (int64_t r = 0; r < ROWS; ++r) {
            const Vec factor = broadcast(a[r]);
#pragma GCC unroll 4
            for (int64_t v = 0; v < VECTORS; ++v) tile[r][v] = fma(factor, columns[v], tile[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; ++v) store(sums + r * COLUMNS + v * Vec::width, tile[r][v]);
    }
}

// Where a tile begins in the matrix, and whether its block of terms is the first and the last one.
struct Place {
    int64_t row, column;
    bool is_first, is_last;
};

// Adds a tile's sums to the matrix `out`; the last block's make the results, on both sides of the diagonal.
BGPT_TARGET void finish_tile(const SymmetricProduct& call, const float* c, float* out, Place at, const float* sums) {
    const int64_t n = call.n, rows = std::min(ROWS, n - at.row), columns = std::min(COLUMNS, n - at.column);
    float results[ROWS * COLUMNS];
    const Vec alpha = broadcast(call.alpha), beta = broadcast(call.beta);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = (at.row + r) * n + at.column, end = std::min(columns, at.row + r + 1 - at.column);
        for (int64_t j = 0; j < end; j += Vec::width) {
            const int64_t count = std::min(Vec::width, end - j);
            Vec value = load(sums + r * COLUMNS + j);
            if (!at.is_first) value = value + load(out + row + j, count);
            if (at.is_last) {
                value = alpha * value;
                if (c) value = fma(beta, load(c + row + j, count), value);
                store(results + r * COLUMNS + j, value);
            }
            store(out + row + j, value, count);
        }
    }
    if (!at.is_last) return;
    for (int64_t j = 0; j < columns; ++j) {
        const int64_t column = at.column + j;
        for (int64_t r = std::max<int64_t>(column - at.row, 0); r < rows; ++r) {
            out[column * n + at.row + r] = results[r * COLUMNS + j];
        }
    }
    for (int64_t r = 0; r < rows && at.row + r < at.column + columns; ++r) {
        out[(at.row + r) * (n + 1)] += call.diagonal;
    }
}

// Matrices [begin, end) of the stack.
BGPT_TARGET void matrices(const SymmetricProduct& call, int64_t begin, int64_t end) {
    const int64_t n = call.n, K = call.K, panels = (n + ROWS - 1) / ROWS;
    const int64_t blocks = std::max<int64_t>((K + kMaxDepth - 1) / kMaxDepth, 1);
    const Aligned<float> left = aligned<float>(panels * ROWS * kMaxDepth), right = aligned<float>(kMaxDepth * COLUMNS);
    alignas(64) float sums[ROWS * COLUMNS];
    for (int64_t m = begin; m < end; ++m) {
        const float *a = call.a + m * n * K, *b = call.b + m * n * K, *c = call.c ? call.c + m * n * n : nullptr;
        float* out = call.out + m * n * n;
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = K * block / blocks, depth = K * (block + 1) / blocks - first;
            const int64_t start = first * call.row_stride;
            for (int64_t panel = 0; panel < panels; ++panel) {
                pack<ROWS>(a + start + panel * ROWS * call.column_stride, call.row_stride, call.column_stride, depth,
                           std::min(ROWS, n - panel * ROWS), left.get() + panel * ROWS * depth);
            }
            for (int64_t column = 0; column < n; column += COLUMNS) {
                pack<COLUMNS>(b + start + column * call.column_stride, call.row_stride, call.column_stride, depth,
                              std::min(COLUMNS, n - column), right.get());
                for (int64_t row = column; row < n; row += ROWS) {
                    tile_products(left.get() + row * depth, right.get(), depth, sums);
                    finish_tile(call, c, out, {row, column, block == 0, block == blocks - 1}, sums);
                }
            }
        }
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
