#if defined(__x86_64__)
#define BGPT_VEC 2
#include "attention/kernels.h"

namespace bgpt {

BGPT_TARGET void attend_avx512(const CachedAttention& arguments, int64_t h, int64_t begin, int64_t end) {
    attend_tokens(arguments, h, begin, end);
}

}  // namespace bgpt
#endif
