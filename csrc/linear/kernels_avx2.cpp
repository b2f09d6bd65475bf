#if defined(__x86_64__)
#define BGPT_VEC 1
#include "linear/bias_gelu_kernels.h"
#include "linear/kernels.h"

namespace bgpt {

BGPT_TARGET void invariant_linear_avx2(const LinearArguments& arguments, int64_t begin, int64_t end) {
    linear_columns(arguments, begin, end);
}
BGPT_TARGET void bias_gelu_row_avx2(const float* x, const float* bias, float* y, int64_t F) { gelu_row(x, bias, y, F); }
BGPT_TARGET void bias_gelu_backward_row_avx2(const float* dy, const float* x, const float* bias, float* dx, float* sums,
                                             int64_t F) {
    gelu_backward_row(dy, x, bias, dx, sums, F);
}

}  // namespace bgpt
#endif
