// The body of layer_norm_row for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

// The sum of f(x) over a row, in SUMS sums, added in a fixed tree; f must return 0 in the lanes after the end.
template <class F>
BGPT_INLINE float row_sum(int64_t width, const F& f) {
    Vec sums[SUMS / Vec::width];
    for (Vec& sum : sums) sum = broadcast(0.0f);
    for (int64_t i = 0; i < width; i += SUMS) {
        for (int64_t v = 0; v < SUMS / Vec::width; ++v) {
            const int64_t at = i + v * Vec::width;
            if (at < width) sums[v] = sums[v] + f(at, std::min(Vec::width, width - at));
        }
    }
    return tree_sum(sums);
}

struct LoadAt {
    const float* x;
    BGPT_INLINE Vec operator()(int64_t at, int64_t count) const { return load(x + at, count); }
};
struct SquareAt {
    const float* x;
    Vec mean;
    BGPT_INLINE Vec operator()(int64_t at, int64_t count) const {
        float lanes[Vec::width] = {};
        const Vec difference = load(x + at, count) - mean;
        if (count == Vec::width) return difference * difference;
        store(lanes, difference * difference, count);
        return load(lanes);
    }
};

BGPT_TARGET void normalize_row(const LayerNormCall& a, Precision precision, void* y) {
    const float width = static_cast<float>(a.width);
    const Vec mean = broadcast(row_sum(a.width, LoadAt{a.x}) / width);
    const float variance = row_sum(a.width, SquareAt{a.x, mean}) / width;
    const Vec scale = broadcast(1.0f / std::sqrt(variance + a.eps));
    for (int64_t i = 0; i < a.width; i += Vec::width) {
        const int64_t count = std::min(Vec::width, a.width - i);
        const Vec value =
            fma((load(a.x + i, count) - mean) * scale, load(a.weight + i, count), load(a.bias + i, count));
        if (precision == Precision::float32) {
            store(static_cast<float*>(y) + i, value, count);
            continue;
        }
        float lanes[Vec::width];
        store(lanes, value);
        for (int64_t j = 0; j < count; ++j) bgpt::store(lanes[j], static_cast<uint16_t*>(y) + i + j);
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
