// The bodies of patch_embed for one instruction set; included by common/each_isa.h.
namespace bgpt::BGPT_ISA {
namespace {

// y = the sum of `count` rows of D, added in float in their order.
template <class T>
BGPT_TARGET void sum_of_rows(const T* const* rows, int64_t count, T* y, int64_t D) {
    constexpr int64_t VECTORS = 4;  // whose sums stay in registers over all rows
    int64_t at = 0;
    for (; at + VECTORS * Vec::width <= D; at += VECTORS * Vec::width) {
        Vec sums[VECTORS];
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; ++v) sums[v] = load(rows[0] + at + v * Vec::width);
        for (int64_t r = 1; r < count; ++r) {
#pragma GCC unroll 4
            for (int64_t v = 0; v < VECTORS; ++v) sums[v] = sums[v] + load(rows[r] + at + v * Vec::width);
        }
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; ++v) store(y + at + v * Vec::width, sums[v]);
    }
    for (; at < D; at += Vec::width) {
        const int64_t lanes = std::min(Vec::width, D - at);
        Vec sum = load(rows[0] + at, lanes);
        for (int64_t r = 1; r < count; ++r) sum = sum + load(rows[r] + at, lanes);
        store(y + at, sum, lanes);
    }
}

template <class T>
BGPT_TARGET void add_row(float* sum, const T* row, int64_t D) {
    int64_t at = 0;
    for (; at + Vec::width <= D; at += Vec::width) store(sum + at, load(sum + at) + load(row + at));
    if (at < D) store(sum + at, load(sum + at, D - at) + load(row + at, D - at), D - at);
}

template <class T>
BGPT_TARGET void rounded_row(const float* sum, T* row, int64_t D) {
    for (int64_t at = 0; at < D; at += Vec::width) {
        const int64_t lanes = std::min(Vec::width, D - at);
        store(row + at, load(sum + at, lanes), lanes);
    }
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
