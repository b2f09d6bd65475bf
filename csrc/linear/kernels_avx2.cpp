#if defined(__x86_64__)
#define BGPT_VEC 1
#include "linear/kernels.h"

namespace bgpt {

BGPT_TARGET void invariant_linear_avx2(const LinearArguments& arguments, int64_t begin, int64_t end) {
    linear_columns(arguments, begin, end);
}

}  // namespace bgpt
#endif
