// The body of bias_gelu for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

struct Gelu {
    Vec value, slope;
};

// gelu(z), with its bits, and GELU'(z) = s + z s (1 - s) 2u' with s = 1 / (1 + e^(-2u)) and u as in gelu. Beyond +-16
// the slope is 1 or 0, NaN for an infinite z. In it e^(-2u) is at most e^80: beyond, s would underflow, and with it
// 1 - s = e^(-2u) s.
BGPT_INLINE Gelu gelu_with_slope(Vec z) {
    const Vec one = broadcast(1.0f), high = broadcast(16.0f), low = broadcast(-16.0f), limit = broadcast(5.5406224e34f);
    const Vec e = vexp(broadcast(-1.5957691216057308f) * fma(broadcast(0.044715f) * z * z, z, z));
    const Vec x = where_greater(low, z, low, where_greater(z, high, high, z));
    const Vec bounded = where_greater(e, limit, limit, e), s = one / (one + bounded);
    const Vec inner = broadcast(1.5957691216057308f) * fma(broadcast(0.134145f) * x, x, one);
    return {z / (one + e), fma(x * inner, bounded * s * s, s) + (z - z)};
}

template <class X>
BGPT_TARGET void gelu_row(const X* x, const float* bias, X* y, int64_t F) {
    int64_t f = 0;
    for (; f + Vec::width <= F; f += Vec::width) store(y + f, gelu(load(x + f) + load(bias + f)));
    if (f < F) store(y + f, gelu(load(x + f, F - f) + load(bias + f, F - f)), F - f);
}

// `sums` [F] gains dx.
template <class X>
BGPT_TARGET void gelu_backward_row(const X* dy, const X* x, const float* bias, X* dx, X* y, float* sums, int64_t F) {
    for (int64_t f = 0; f < F; f += Vec::width) {
        const int64_t count = std::min(Vec::width, F - f);
        const Gelu gelu = gelu_with_slope(load(x + f, count) + load(bias + f, count));
        const Vec gradient = load(dy + f, count) * gelu.slope;
        store(y + f, gelu.value, count);
        store(dx + f, gradient, count);
        store(sums + f, load(sums + f, count) + gradient, count);
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
