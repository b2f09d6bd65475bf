#include "linear/packed_linear.h"

#include <algorithm>
#include <cmath>

#include "common/bf16.h"

namespace bgpt {
namespace {

float largest(const float* weight, int64_t row, int64_t K) {
    float most = 0.0f;
    for (int64_t k = 0; k < K; ++k) most = std::max(most, std::fabs(weight[k * row]));
    return most;
}

int8_t rounded(float x) {
    return std::isfinite(x) ? static_cast<int8_t>(std::nearbyint(std::clamp(x, -127.0f, 127.0f))) : int8_t{0};
}

}  // namespace

PackedLinear::PackedLinear(const float* from, int64_t row, int64_t column, const float* from_bias, int64_t inputs,
                           int64_t outputs, Precision kind)
    : K(inputs),
      N(outputs),
      panels((N + kPanel - 1) / kPanel),
      links(kind == Precision::float32 ? K : (K + 1) / 2 * 2),
      precision(kind) {
    constexpr int64_t sizes[] = {4, 2, 1};
    const int64_t columns = panels * kPanel;
    bytes = columns * links * sizes[static_cast<int>(precision)];
    weight = aligned<unsigned char>(bytes);
    bias = aligned<float>(columns);
    scale = aligned<float>(columns);
    for (int64_t n = 0; n < columns; ++n) {
        bias[n] = n < N && from_bias != nullptr ? from_bias[n] : 0.0f;
        scale[n] = 1.0f;
        if (precision != Precision::int8 || n >= N) continue;
        const float most = largest(from + n * column, row, K);
        // An infinite or NaN weight makes its outputs NaN, so that it is noticed.
        bool finite = std::isfinite(most);
        for (int64_t k = 0; k < K && finite; ++k) finite = std::isfinite(from[k * row + n * column]);
        scale[n] = !finite ? NAN : most > 0.0f ? most / 127.0f : 1.0f;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t k = 0; k < links; ++k) {
            for (int64_t i = 0; i < kPanel; ++i) {
                const int64_t n = panel * kPanel + i;
                const float value = n < N && k < K ? from[k * row + n * column] : 0.0f;
                const int64_t pair = ((panel * links + k / 2 * 2) * kPanel) + i * 2 + k % 2;
                if (precision == Precision::float32) {
                    reinterpret_cast<float*>(weight.get())[(panel * links + k) * kPanel + i] = value;
                } else if (precision == Precision::bfloat16) {
                    store(value, reinterpret_cast<uint16_t*>(weight.get()) + pair);
                } else {
                    reinterpret_cast<int8_t*>(weight.get())[pair] = rounded(value / scale[n]);
                }
            }
        }
    }
}

bool has_bf16_dot() {
#if defined(__x86_64__)
    static const bool has = best_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
    return has;
#else
    return false;
#endif
}

void packed_linear(const PackedCall& call, int64_t begin, int64_t end, Isa isa) {
    switch (isa) {
#if defined(__x86_64__)
        case Isa::avx512:
            return has_bf16_dot() ? packed_linear_avx512_bf16(call, begin, end)
                                  : packed_linear_avx512(call, begin, end);
        case Isa::avx2:
            return packed_linear_avx2(call, begin, end);
#endif
        default:
            return packed_linear_portable(call, begin, end);
    }
}

void norm_row(const NormCall& call, Precision precision, void* y, Isa isa) {
    switch (isa) {
#if defined(__x86_64__)
        case Isa::avx512:
            return norm_row_avx512(call, precision, y);
        case Isa::avx2:
            return norm_row_avx2(call, precision, y);
#endif
        default:
            return norm_row_portable(call, precision, y);
    }
}

void to_inputs(const float* x, int64_t count, Precision precision, void* inputs) {
    if (precision == Precision::float32) {
        std::copy_n(x, count, static_cast<float*>(inputs));
        return;
    }
    for (int64_t i = 0; i < count; ++i) store(x[i], static_cast<uint16_t*>(inputs) + i);
}

}  // namespace bgpt
