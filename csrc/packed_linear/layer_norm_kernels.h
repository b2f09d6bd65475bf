// The body of layer_norm_row for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

struct LoadAt {
    const float* x;
    BGPT_INLINE Vec operator()(int64_t at, int64_t count) const { return load(x + at, count); }
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
        store(static_cast<uint16_t*>(y) + i, value, count);
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
