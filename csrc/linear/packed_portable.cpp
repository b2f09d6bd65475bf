#define BGPT_VEC 0
#include "linear/packed_kernels.h"

namespace bgpt {

void packed_linear_portable(const PackedCall& call, int64_t begin, int64_t end) { packed_panels(call, begin, end); }
void norm_row_portable(const NormCall& call, Precision precision, void* y) { norm(call, precision, y); }

}  // namespace bgpt
