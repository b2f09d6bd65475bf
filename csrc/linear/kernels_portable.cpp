#define BGPT_VEC 0
#include "linear/bias_gelu_kernels.h"
#include "linear/kernels.h"

namespace bgpt {

void invariant_linear_portable(const LinearArguments& arguments, int64_t begin, int64_t end) {
    linear_columns(arguments, begin, end);
}
void bias_gelu_row_portable(const float* x, const float* bias, float* y, int64_t F) { gelu_row(x, bias, y, F); }
void bias_gelu_backward_row_portable(const float* dy, const float* x, const float* bias, float* dx, float* sums,
                                     int64_t F) {
    gelu_backward_row(dy, x, bias, dx, sums, F);
}

}  // namespace bgpt
