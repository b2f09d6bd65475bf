#define BGPT_VEC 0
#include "attention/kernels.h"

namespace bgpt {

void attend_portable(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end) {
    attend_tokens(arguments, h, begin, end);
}

}  // namespace bgpt
