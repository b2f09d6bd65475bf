// The bodies of layer_norm for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

constexpr int64_t PARTS = SUMS / Vec::width;  // vectors that hold a row's SUMS sums

#define BGPT_LAMBDA BGPT_TARGET __attribute__((always_inline))

// Calls body(at, part, count) for the vectors of a row of D: `count` columns from `at` on, a constant in whole vectors.
template <class Body>
BGPT_INLINE void for_vectors(int64_t D, const Body& body) {
    for (int64_t i = 0; i < D; i += SUMS) {
#pragma GCC unroll 4
        for (int64_t part = 0; part < PARTS; ++part) {
            const int64_t at = i + part * Vec::width;
            if (at + Vec::width <= D) {
                body(at, part, Vec::width);
            } else if (at < D) {
                body(at, part, D - at);
            }
        }
    }
}

// x with zeros after the first `count` lanes.
BGPT_INLINE Vec first_only(Vec x, int64_t count) {
    if (count == Vec::width) return x;
    float lanes[Vec::width] = {};
    store(lanes, x, count);
    return load(lanes);
}

// x rounded to T.
template <class T>
BGPT_INLINE Vec rounded(Vec x) {
    if constexpr (std::is_same_v<T, float>) {
        return x;
    } else {
        return from_bf16(to_bf16(x));
    }
}

// SUMS sums, zeros at first.
struct Sums {
    Vec of[PARTS];
    BGPT_INLINE Sums() {
        for (Vec& sum : of) sum = broadcast(0.0f);
    }
};

// The next row is fetched while the first pass over a row runs: several rows that are read and one that is written are
// more than the processor fetches ahead by itself.
template <class Y, class T>
BGPT_TARGET void forward_row(const LayerNormForward& a, int64_t n) {
    const int64_t D = a.D;
    const Y* x = a.x ? static_cast<const Y*>(a.x) + n * D : nullptr;
    const T* residual = static_cast<const T*>(a.residual) + n * D;
    T* total = static_cast<T*>(a.total) + n * D;
    Y* y = static_cast<Y*>(a.y) + n * D;
    const float width = static_cast<float>(D);

    Sums sums, squares;
    for_vectors(D, [&](int64_t at, int64_t part, int64_t count) BGPT_LAMBDA {
        __builtin_prefetch(residual + D + at);
        Vec value = load(residual + at, count);
        if (x) {
            __builtin_prefetch(x + D + at);
            value = rounded<T>(value + load(x + at, count));
            store(total + at, value, count);
        }
        sums.of[part] = sums.of[part] + value;
    });
    a.mean[n] = tree_sum(sums.of) / width;
    const Vec mean = broadcast(a.mean[n]);
    for_vectors(D, [&](int64_t at, int64_t part, int64_t count) BGPT_LAMBDA {
        const Vec difference = load(total + at, count) - mean;
        squares.of[part] = squares.of[part] + first_only(difference * difference, count);
    });
    a.rstd[n] = 1.0f / std::sqrt(tree_sum(squares.of) / width + a.eps);
    const Vec rstd = broadcast(a.rstd[n]);
    for_vectors(D, [&](int64_t at, int64_t, int64_t count) BGPT_LAMBDA {
        const Vec normal = (load(total + at, count) - mean) * rstd;
        store(y + at, fma(normal, load(a.weight + at, count), load(a.bias + at, count)), count);
    });
}

// `sums` gain dy times the normalised row, dy, and, where it is asked for, the row of dtotal, [D] each.
template <class Y, class T>
BGPT_TARGET void backward_row(const LayerNormBackward& a, int64_t n, float* sums) {
    const int64_t D = a.D;
    const Y* dy = static_cast<const Y*>(a.dy) + n * D;
    const T* total = static_cast<const T*>(a.total) + n * D;
    const T* addend = a.addend ? static_cast<const T*>(a.addend) + n * D : nullptr;
    T* dtotal = static_cast<T*>(a.dtotal) + n * D;
    Y* dx = a.dx ? static_cast<Y*>(a.dx) + n * D : nullptr;
    float *dweight = sums, *dbias = sums + D, *dtotal_sum = a.dtotal_sum ? sums + 2 * D : nullptr;
    const float width = static_cast<float>(D);
    const Vec mean = broadcast(a.mean[n]), rstd = broadcast(a.rstd[n]);

    Sums slopes, products;
    for_vectors(D, [&](int64_t at, int64_t part, int64_t count) BGPT_LAMBDA {
        __builtin_prefetch(dy + D + at);
        __builtin_prefetch(total + D + at);
        if (addend) __builtin_prefetch(addend + D + at);
        const Vec gradient = load(dy + at, count), normal = (load(total + at, count) - mean) * rstd;
        store(dweight + at, fma(gradient, normal, load(dweight + at, count)), count);
        store(dbias + at, load(dbias + at, count) + gradient, count);
        const Vec slope = gradient * load(a.weight + at, count);  // 0 in the lanes after the end, as gradient is
        slopes.of[part] = slopes.of[part] + slope;
        products.of[part] = fma(slope, first_only(normal, count), products.of[part]);
    });
    const Vec slope_mean = broadcast(tree_sum(slopes.of) / width);
    const Vec product_mean = broadcast(tree_sum(products.of) / width);
    for_vectors(D, [&](int64_t at, int64_t, int64_t count) BGPT_LAMBDA {
        const Vec normal = (load(total + at, count) - mean) * rstd;
        const Vec slope = load(dy + at, count) * load(a.weight + at, count);
        Vec gradient = (slope - slope_mean - normal * product_mean) * rstd;
        if (addend) gradient = gradient + load(addend + at, count);
        store(dtotal + at, gradient, count);
        if (dx) store(dx + at, gradient, count);
        if (dtotal_sum) store(dtotal_sum + at, load(dtotal_sum + at, count) + gradient, count);
    });
}

// Rows [begin, end).
BGPT_TARGET void forward_rows(const LayerNormForward& a, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
        if (a.is_y_bf16) {
            a.is_total_bf16 ? forward_row<uint16_t, uint16_t>(a, n) : forward_row<uint16_t, float>(a, n);
        } else {
            a.is_total_bf16 ? forward_row<float, uint16_t>(a, n) : forward_row<float, float>(a, n);
        }
    }
}

// Rows [begin, end), whose sums `sums` gain.
BGPT_TARGET void backward_rows(const LayerNormBackward& a, int64_t begin, int64_t end, float* sums) {
    for (int64_t n = begin; n < end; ++n) {
        if (a.is_y_bf16) {
            a.is_total_bf16 ? backward_row<uint16_t, uint16_t>(a, n, sums) : backward_row<uint16_t, float>(a, n, sums);
        } else {
            a.is_total_bf16 ? backward_row<float, uint16_t>(a, n, sums) : backward_row<float, float>(a, n, sums);
        }
    }
}

#undef BGPT_LAMBDA

}  // namespace
}  // namespace bgpt::BGPT_ISA
