// The bodies of layer_norm for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

// Gathers a row of the total as floats into `row`, and stores it where it is a sum.
template <class Y, class T>
struct TotalAt {
    const Y* x;
    const T* residual;
    T* total;
    float* row;
    BGPT_INLINE Vec operator()(int64_t at, int64_t count) const {
        Vec value = load(residual + at, count);
        if (x) {
            value = value + load(x + at, count);
            store(total + at, value, count);
            value = load(total + at, count);
        }
        store(row + at, value, count);
        return value;
    }
};

template <class Y, class T>
BGPT_INLINE void forward_row(const LayerNormForward& a, int64_t n, float* row) {
    const int64_t D = a.D, at = n * D;
    const auto x = static_cast<const Y*>(a.x);
    const TotalAt<Y, T> total{x ? x + at : nullptr, static_cast<const T*>(a.residual) + at,
                              static_cast<T*>(a.total) + at, row};
    const float width = static_cast<float>(D);
    a.mean[n] = row_sum(D, total) / width;
    const Vec mean = broadcast(a.mean[n]);
    a.rstd[n] = 1.0f / std::sqrt(row_sum(D, SquareAt{row, mean}) / width + a.eps);
    const Vec rstd = broadcast(a.rstd[n]);
    Y* y = static_cast<Y*>(a.y) + at;
    for (int64_t i = 0; i < D; i += Vec::width) {
        const int64_t count = std::min(Vec::width, D - i);
        const Vec normal = (load(row + i, count) - mean) * rstd;
        store(y + i, fma(normal, load(a.weight + i, count), load(a.bias + i, count)), count);
    }
}

// Rows [begin, end); `row` [D] is working memory.
BGPT_TARGET void forward_rows(const LayerNormForward& a, int64_t begin, int64_t end, float* row) {
    for (int64_t n = begin; n < end; ++n) {
        if (a.is_y_bf16) {
            a.is_total_bf16 ? forward_row<uint16_t, uint16_t>(a, n, row) : forward_row<uint16_t, float>(a, n, row);
        } else {
            a.is_total_bf16 ? forward_row<float, uint16_t>(a, n, row) : forward_row<float, float>(a, n, row);
        }
    }
}

// x with zeros after the first `count` lanes.
BGPT_INLINE Vec first_only(Vec x, int64_t count) {
    float lanes[Vec::width] = {};
    store(lanes, x, count);
    return load(lanes);
}

// `sums` gain dy times the normalised row, dy, and, where it is asked for, the row of dtotal, [D] each.
template <class Y, class T>
BGPT_INLINE void backward_row(const LayerNormBackward& a, int64_t n, float* sums) {
    const int64_t D = a.D, at = n * D;
    const Y* dy = static_cast<const Y*>(a.dy) + at;
    const T* total = static_cast<const T*>(a.total) + at;
    const Vec mean = broadcast(a.mean[n]), rstd = broadcast(a.rstd[n]);
    Vec slopes[SUMS / Vec::width], products[SUMS / Vec::width];
    for (int64_t v = 0; v < SUMS / Vec::width; ++v) slopes[v] = products[v] = broadcast(0.0f);
    for (int64_t i = 0; i < D; i += SUMS) {
        for (int64_t v = 0; v < SUMS / Vec::width; ++v) {
            const int64_t j = i + v * Vec::width, count = std::min(Vec::width, D - j);
            if (count <= 0) continue;
            const Vec gradient = load(dy + j, count), normal = (load(total + j, count) - mean) * rstd;
            store(sums + j, fma(gradient, normal, load(sums + j, count)), count);
            store(sums + D + j, load(sums + D + j, count) + gradient, count);
            const Vec slope = gradient * load(a.weight + j, count);  // 0 in the lanes after the end, as gradient is
            slopes[v] = slopes[v] + slope;
            products[v] = fma(slope, count == Vec::width ? normal : first_only(normal, count), products[v]);
        }
    }
    const Vec slope_mean = broadcast(tree_sum(slopes) / static_cast<float>(D));
    const Vec product_mean = broadcast(tree_sum(products) / static_cast<float>(D));
    const T* addend = static_cast<const T*>(a.addend);
    for (int64_t i = 0; i < D; i += Vec::width) {
        const int64_t count = std::min(Vec::width, D - i);
        const Vec normal = (load(total + i, count) - mean) * rstd;
        const Vec slope = load(dy + i, count) * load(a.weight + i, count);
        Vec gradient = (slope - slope_mean - normal * product_mean) * rstd;
        if (addend) gradient = gradient + load(addend + at + i, count);
        store(static_cast<T*>(a.dtotal) + at + i, gradient, count);
        if (a.dx) store(static_cast<Y*>(a.dx) + at + i, gradient, count);
        if (a.dtotal_sum) store(sums + 2 * D + i, load(sums + 2 * D + i, count) + gradient, count);
    }
}

// Rows [begin, end).
BGPT_TARGET void backward_rows(const LayerNormBackward& a, int64_t begin, int64_t end, float* sums) {
    for (int64_t n = begin; n < end; ++n) {
        if (a.is_y_bf16) {
            a.is_total_bf16 ? backward_row<uint16_t, uint16_t>(a, n, sums) : backward_row<uint16_t, float>(a, n, sums);
        } else {
            a.is_total_bf16 ? backward_row<float, uint16_t>(a, n, sums) : backward_row<float, float>(a, n, sums);
        }
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
