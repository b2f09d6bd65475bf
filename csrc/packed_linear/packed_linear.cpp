#include "packed_linear/packed_linear.h"

#include <algorithm>
#include <cmath>

#define BGPT_KERNELS "packed_linear/kernels.h"
#define BGPT_WITH_BF16_DOT
#include "common/each_isa.h"

namespace bgpt {
namespace {

// The scale of an int8 column. NaN for a NaN or infinite weight, which makes the outputs NaN, so that it is noticed.
float scale_of(const float* weight, int64_t row, int64_t K) {
    float largest = 0.0f;
    for (int64_t k = 0; k < K; ++k) {
        if (!std::isfinite(weight[k * row])) return NAN;
        largest = std::max(largest, std::fabs(weight[k * row]));
    }
    return largest > 0.0f ? largest / 127.0f : 1.0f;
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
      depth(kind == Precision::float32 ? K : (K + 1) / 2 * 2),
      precision(kind) {
    constexpr int64_t sizes[] = {4, 2, 1};
    const int64_t columns = panels * kPanel;
    bytes = columns * depth * sizes[static_cast<int>(precision)];
    weight = aligned<unsigned char>(bytes);
    bias = aligned<float>(columns);
    scale = aligned<float>(columns);
    for (int64_t n = 0; n < columns; ++n) {
        bias[n] = n < N && from_bias != nullptr ? from_bias[n] : 0.0f;
        scale[n] = precision == Precision::int8 && n < N ? scale_of(from + n * column, row, K) : 1.0f;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t k = 0; k < depth; ++k) {
            for (int64_t i = 0; i < kPanel; ++i) {
                const int64_t n = panel * kPanel + i;
                const float value = n < N && k < K ? from[k * row + n * column] : 0.0f;
                const int64_t pair = ((panel * depth + k / 2 * 2) * kPanel) + i * 2 + k % 2;
                if (precision == Precision::float32) {
                    reinterpret_cast<float*>(weight.get())[(panel * depth + k) * kPanel + i] = value;
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

void packed_linear(const PackedLinearCall& call, int64_t begin, int64_t end, Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx512 && has_bf16_dot()) return avx512_bf16::packed_panels(call, begin, end);
#endif
    BGPT_DISPATCH(isa, packed_panels)(call, begin, end);
}

void to_inputs(const float* x, int64_t count, Precision precision, void* inputs) {
    if (precision == Precision::float32) {
        std::copy_n(x, count, static_cast<float*>(inputs));
        return;
    }
    for (int64_t i = 0; i < count; ++i) store(x[i], static_cast<uint16_t*>(inputs) + i);
}

}  // namespace bgpt
