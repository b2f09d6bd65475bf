// The bodies of byte_embed for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

template <class A, class B, class X>
BGPT_INLINE void sum_of_two(const A* a, const B* b, X* x, int64_t D) {
    int64_t at = 0;
    for (; at + Vec::width <= D; at += Vec::width) store(x + at, load(a + at) + load(b + at));
    if (at < D) store(x + at, load(a + at, D - at) + load(b + at, D - at), D - at);
}

// Patches [begin, end).
template <class T, class W>
BGPT_TARGET void embed_patches(const T* features, const int16_t* patches, const W* wte, const W* wpe, T* x,
                               int64_t begin, int64_t end, int64_t S, int64_t D) {
    for (int64_t t = begin; t < end; ++t) {
        T* row = x + t * S * D;
        sum_of_two(features + t * D, wpe, row, D);
        for (int64_t s = 1; s < S; ++s) sum_of_two(wte + patches[t * S + s - 1] * D, wpe + s * D, row + s * D, D);
    }
}

// Columns [first, last) of patches [begin, end); `wpe_sums` [S, D] gain their rows.
template <class T>
BGPT_TARGET void sums_of_patches(const T* dx, const int16_t* patches, float* dwte, float* wpe_sums, int64_t begin,
                                 int64_t end, int64_t first, int64_t last, int64_t S, int64_t D) {
    for (int64_t t = begin; t < end; ++t) {
        for (int64_t s = 0; s < S; ++s) {
            const T* row = dx + (t * S + s) * D;
            float *position = wpe_sums + s * D, *token = s == 0 ? nullptr : dwte + patches[t * S + s - 1] * D;
            for (int64_t at = first; at < last; at += Vec::width) {
                const int64_t count = std::min(Vec::width, last - at);
                const Vec gradient = load(row + at, count);
                store(position + at, load(position + at, count) + gradient, count);
                if (token) store(token + at, load(token + at, count) + gradient, count);
            }
        }
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
