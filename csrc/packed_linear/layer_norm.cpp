#include <algorithm>

#include "packed_linear/packed_linear.h"

#define BGPT_KERNELS "packed_linear/layer_norm_kernels.h"
#include "common/each_isa.h"

namespace bgpt {

void layer_norm_row(const LayerNormCall& call, Precision precision, void* y, Isa isa) {
    BGPT_DISPATCH(isa, normalize_row)(call, precision, y);
}

}  // namespace bgpt
