#include "common/bind.h"

#include "layer_norm/layer_norm.h"

namespace bgpt {

void bind_layer_norm(py::module_& m) {
    def(
        m, "layer_norm_forward",
        {"x", "residual", "total", "y", "weight", "bias", "mean", "rstd", "N", "D", "eps", "y_bf16", "total_bf16",
         "threads", "isa"},
        +[](const void* x, const void* residual, void* total, void* y, const float* weight, const float* bias,
            float* mean, float* rstd, int64_t N, int64_t D, float eps, bool y_bf16, bool total_bf16, int64_t threads,
            Isa isa) {
            layer_norm_forward({x, residual, total, y, weight, bias, mean, rstd, N, D, eps, y_bf16, total_bf16},
                               threads, isa);
        });
    def(
        m, "layer_norm_backward",
        {"dy", "addend", "total", "dtotal", "dx", "weight", "mean", "rstd", "dweight", "dbias", "dtotal_sum", "N", "D",
         "y_bf16", "total_bf16", "threads", "isa"},
        +[](const void* dy, const void* addend, const void* total, void* dtotal, void* dx, const float* weight,
            const float* mean, const float* rstd, float* dweight, float* dbias, float* dtotal_sum, int64_t N, int64_t D,
            bool y_bf16, bool total_bf16, int64_t threads, Isa isa) {
            layer_norm_backward({dy, addend, total, dtotal, dx, weight, mean, rstd, dweight, dbias, dtotal_sum, N, D,
                                 y_bf16, total_bf16},
                                threads, isa);
        });
}

}  // namespace bgpt
