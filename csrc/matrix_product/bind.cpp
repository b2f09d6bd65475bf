#include "common/bind.h"

#include "matrix_product/matrix_product.h"

namespace bgpt {

void bind_matrix_product(py::module_& m) {
    def(
        m, "matrix_product",
        {"a", "a_row", "a_column", "b", "b_row", "b_column", "bias", "y", "M", "N", "K", "threads", "isa"},
        +[](const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t b_column,
            const float* bias, float* y, int64_t M, int64_t N, int64_t K, int64_t threads,
            Isa isa) { matrix_product({a, a_row, a_column, b, b_row, b_column, bias, y, M, N, K}, threads, isa); });
}

}  // namespace bgpt
