#include "common/bind.h"

#include "invariant_linear/invariant_linear.h"

namespace bgpt {

void bind_invariant_linear(py::module_& m) {
    def(
        m, "invariant_linear", {"x", "weight", "bias", "y", "M", "K", "N", "gelu", "threads", "isa"},
        +[](const float* x, const float* weight, const float* bias, float* y, int64_t M, int64_t K, int64_t N,
            bool gelu, int64_t threads,
            Isa isa) { invariant_linear({x, weight, bias, y, M, K, N, gelu}, threads, isa); });
}

}  // namespace bgpt
