#include "common/bind.h"

#include "bias_gelu/bias_gelu.h"

namespace bgpt {

void bind_bias_gelu(py::module_& m) {
    def(
        m, "bias_gelu", {"x", "bias", "y", "N", "F", "bf16", "threads", "isa"},
        +[](const void* x, const float* bias, void* y, int64_t N, int64_t F, bool bf16, int64_t threads, Isa isa) {
            with_element_type(bf16, [&]<class X>(X*) {
                bias_gelu(static_cast<const X*>(x), bias, static_cast<X*>(y), N, F, threads, isa);
            });
        });
    def(
        m, "bias_gelu_backward", {"dy", "x", "bias", "dx", "y", "dbias", "N", "F", "bf16", "threads", "isa"},
        +[](const void* dy, const void* x, const float* bias, void* dx, void* y, float* dbias, int64_t N, int64_t F,
            bool bf16, int64_t threads, Isa isa) {
            with_element_type(bf16, [&]<class X>(X*) {
                bias_gelu_backward(static_cast<const X*>(dy), static_cast<const X*>(x), bias, static_cast<X*>(dx),
                                   static_cast<X*>(y), dbias, N, F, threads, isa);
            });
        });
}

}  // namespace bgpt
