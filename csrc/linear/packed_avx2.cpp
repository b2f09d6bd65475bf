#if defined(__x86_64__)
#define BGPT_VEC 1
#include "linear/packed_kernels.h"

namespace bgpt {

BGPT_DOT_TARGET void packed_linear_avx2(const PackedCall& call, int64_t begin, int64_t end) {
    packed_panels(call, begin, end);
}
BGPT_TARGET void norm_row_avx2(const NormCall& call, Precision precision, void* y) { norm(call, precision, y); }

}  // namespace bgpt
#endif
