#include "matrix_product/matrix_product.h"

#include <algorithm>

#include "common/aligned.h"
#include "common/threads.h"

namespace bgpt {
namespace {

constexpr int64_t kDepth = 192;    // terms of a block: a panel of b and a tile of a fit the first-level cache
constexpr int64_t kColumns = 768;  // columns of b packed at a time: a block of them fits the second-level cache
constexpr int64_t kRows = 112;     // rows of a that are copied at a time
constexpr int64_t kGrain = int64_t{1} << 21;  // multiplications that are worth a thread: some 20 us of work

// The part of the result that a thread computes.
struct Part {
    int64_t first_row, last_row, first_column, last_column;
};

}  // namespace
}  // namespace bgpt

#define BGPT_KERNELS "matrix_product/kernels.h"
#include "common/each_isa.h"

namespace bgpt {

void matrix_product(const MatrixProduct& call, int64_t threads, Isa isa) {
    const auto part = BGPT_DISPATCH(isa, part_of_product);
    // Threads own rows or columns of the result, in multiples of cache lines.
    constexpr int64_t group = 16;
    const bool by_rows = call.M >= call.N;
    const int64_t count = by_rows ? call.M : call.N, other = by_rows ? call.N : call.M;
    const int64_t work = std::max<int64_t>(other * call.K * group, 1);
    parallel_for((count + group - 1) / group, threads, kGrain / work + 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * group, last = std::min(end * group, count);
        by_rows ? part(call, {first, last, 0, call.N}) : part(call, {0, call.M, first, last});
    });
}

}  // namespace bgpt
