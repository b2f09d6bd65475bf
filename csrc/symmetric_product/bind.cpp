#include "common/bind.h"

#include "symmetric_product/symmetric_product.h"

namespace bgpt {

void bind_symmetric_product(py::module_& m) {
    def(
        m, "symmetric_product",
        {"a", "b", "c", "out", "M", "n", "K", "row_stride", "column_stride", "alpha", "beta", "diagonal", "threads",
         "isa"},
        +[](const float* a, const float* b, const float* c, float* out, int64_t M, int64_t n, int64_t K,
            int64_t row_stride, int64_t column_stride, float alpha, float beta, float diagonal, int64_t threads,
            Isa isa) {
            symmetric_product({a, b, c, out, M, n, K, row_stride, column_stride, alpha, beta, diagonal}, threads, isa);
        });
}

}  // namespace bgpt
