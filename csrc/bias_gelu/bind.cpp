#include "common/bind.h"

#include "bias_gelu/bias_gelu.h"

namespace bgpt {

void bind_bias_gelu(py::module_& m) {
    def(m, "bias_gelu", {"x", "bias", "y", "N", "F", "threads", "isa"}, &bias_gelu);
    def(m, "bias_gelu_backward", {"dy", "x", "bias", "dx", "dbias", "N", "F", "threads", "isa"}, &bias_gelu_backward);
}

}  // namespace bgpt
