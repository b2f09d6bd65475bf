#if defined(__x86_64__)
#define BGPT_VEC 2
#include "linear/packed_kernels.h"

namespace bgpt {

BGPT_DOT_TARGET void packed_linear_avx512(const PackedCall& call, int64_t begin, int64_t end) {
    packed_panels(call, begin, end);
}
BGPT_TARGET void norm_row_avx512(const NormCall& call, Precision precision, void* y) { norm(call, precision, y); }

}  // namespace bgpt
#endif
