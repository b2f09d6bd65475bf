#include "invariant_linear/invariant_linear.h"

#include <algorithm>
#include <vector>

#include "common/threads.h"

#define BGPT_KERNELS "invariant_linear/kernels.h"
#include "common/each_isa.h"

namespace bgpt {

void invariant_linear(const LinearArguments& arguments, int64_t threads, Isa isa) {
    const int64_t M = arguments.M, K = arguments.K, N = arguments.N;
    if (M == 0) return;
    // Threads own whole groups of columns, at least a cache line wide. A thread costs some 20 us to start: a few rows
    // are bound by the bytes of the weight, which a second core on the same memory reads no faster (measured: 105 us
    // for 768 x 2304 on one thread, 165 to 185 us on two); from some 8 rows on, arithmetic counts.
    constexpr int64_t group = 48;
    const int64_t work = std::max<int64_t>(K, 1) * group * std::max<int64_t>(1, M / 4);
    const auto linear_columns = BGPT_DISPATCH(isa, linear_columns);
    parallel_for((N + group - 1) / group, threads, (int64_t{1} << 21) / work + 1, [&](int64_t begin, int64_t end) {
        linear_columns(arguments, begin * group, std::min(end * group, N));
    });
}

}  // namespace bgpt
