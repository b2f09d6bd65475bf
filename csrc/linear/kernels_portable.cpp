#define BGPT_VEC 0
#include "linear/kernels.h"

namespace bgpt {

void invariant_linear_portable(const LinearArguments& arguments, int64_t begin, int64_t end) {
    linear_columns(arguments, begin, end);
}

}  // namespace bgpt
