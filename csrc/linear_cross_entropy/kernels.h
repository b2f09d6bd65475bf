// The bodies of cross_entropy for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

template <class X>
BGPT_INLINE float largest(const X* logits, int64_t V) {
    float top = to_float(logits[0]);
    int64_t v = 0;
    if (V >= Vec::width) {
        Vec tops = load(logits);
        for (v = Vec::width; v + Vec::width <= V; v += Vec::width) {
            const Vec others = load(logits + v);
            tops = where_greater(others, tops, others, tops);
        }
        float lanes[Vec::width];
        store(lanes, tops);
        for (const float lane : lanes) top = std::max(top, lane);
    }
    for (; v < V; ++v) top = std::max(top, to_float(logits[v]));
    return top;
}

// Gathers e^(logit - top) into `row`, for row_sum.
template <class X>
struct PowerAt {
    const X* logits;
    Vec top;
    float* row;
    BGPT_INLINE Vec operator()(int64_t at, int64_t count) const {
        const Vec power = vexp(load(logits + at, count) - top);
        store(row + at, power, count);
        return count == Vec::width ? power : load(row + at, count);
    }
};

// As in torch.logsumexp, an infinite maximum is not subtracted, so that the logarithm is that infinity and not NaN.
template <class X>
BGPT_TARGET PowersOfRow powers(const X* logits, int64_t V, float* row) {
    const float most = largest(logits, V), top = std::isinf(most) ? 0.0f : most;
    return {top, row_sum(V, PowerAt<X>{logits, broadcast(top), row})};
}

template <class X>
BGPT_TARGET void row_gradient(const X* logits, int64_t V, int64_t target, float dnats, float* row, X* gradient) {
    const float total = powers(logits, V, row).total;
    row[target] -= total;
    const Vec share = broadcast(1.0f / total), scale = broadcast(dnats);
    for (int64_t v = 0; v < V; v += Vec::width) {
        const int64_t count = std::min(Vec::width, V - v);
        store(gradient + v, load(row + v, count) * share * scale, count);
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
