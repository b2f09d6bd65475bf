#include "linear/invariant_linear.h"

#include <algorithm>

#include "common/threads.h"

namespace bgpt {

void invariant_linear(const LinearArguments& arguments, int64_t threads, Isa isa) {
    const int64_t M = arguments.M, K = arguments.K, N = arguments.N;
    if (M == 0) return;
    // Threads own whole groups of columns, at least a cache line wide. A thread costs some 20 us to start: a few rows
    // are bound by the bytes of the weight, which a second core on the same memory reads no faster (measured: 105 us
    // for 768 x 2304 on one thread, 165 to 185 us on two); from some 8 rows on, arithmetic counts.
    constexpr int64_t group = 48;
    const int64_t work = std::max<int64_t>(K, 1) * group * std::max<int64_t>(1, M / 4);
    parallel_for((N + group - 1) / group, threads, (int64_t{1} << 21) / work + 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * group, last = std::min(end * group, N);
        switch (isa) {
#if defined(__x86_64__)
            case Isa::avx512:
                return invariant_linear_avx512(arguments, first, last);
            case Isa::avx2:
                return invariant_linear_avx2(arguments, first, last);
#endif
            default:
                return invariant_linear_portable(arguments, first, last);
        }
    });
}

}  // namespace bgpt
