// The body of bias_gelu for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

// GELU'(z) = s + z s (1 - s) 2u' with s = 1 / (1 + e^(-2u)) and u as in gelu. Beyond +-16 it is 1 or 0, NaN for an
// infinite z. e^(-2u) is limited to e^80: beyond, s would underflow, and with it 1 - s = e^(-2u) s.
BGPT_INLINE Vec gelu_slope(Vec z) {
    const Vec high = broadcast(16.0f), low = broadcast(-16.0f), limit = broadcast(80.0f);
    const Vec x = where_greater(low, z, low, where_greater(z, high, high, z)), square = x * x;
    const Vec power = broadcast(-1.5957691216057308f) * fma(broadcast(0.044715f) * square, x, x);
    const Vec e = vexp(where_greater(power, limit, limit, power));
    const Vec s = broadcast(1.0f) / (broadcast(1.0f) + e);
    const Vec inner = broadcast(1.5957691216057308f) * fma(broadcast(0.134145f), square, broadcast(1.0f));
    return fma(x * inner, e * s * s, s) + (z - z);
}

template <class X>
BGPT_TARGET void gelu_row(const X* x, const float* bias, X* y, int64_t F) {
    int64_t f = 0;
    for (; f + Vec::width <= F; f += Vec::width) store(y + f, gelu(load(x + f) + load(bias + f)));
    if (f < F) store(y + f, gelu(load(x + f, F - f) + load(bias + f, F - f)), F - f);
}

// `sums` [F] gains dx.
template <class X>
BGPT_TARGET void gelu_backward_row(const X* dy, const X* x, const float* bias, X* dx, float* sums, int64_t F) {
    int64_t f = 0;
    for (; f + Vec::width <= F; f += Vec::width) {
        const Vec slope = load(dy + f) * gelu_slope(load(x + f) + load(bias + f));
        store(dx + f, slope);
        store(sums + f, load(sums + f) + slope);
    }
    if (f < F) {
        const int64_t rest = F - f;
        const Vec slope = load(dy + f, rest) * gelu_slope(load(x + f, rest) + load(bias + f, rest));
        store(dx + f, slope, rest);
        store(sums + f, load(sums + f, rest) + slope, rest);
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
