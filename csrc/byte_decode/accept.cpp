#include "byte_decode/accept.h"

namespace bgpt {

void byte_accept(const Accept& call) {
    Scratch scratch;
    for (int64_t n = 0; n < call.N; ++n) {
        if (call.going[n] == 0) continue;
        const uint64_t position = call.starts[n] + static_cast<uint64_t>(call.s);
        call.take(n, choose(call.logits + n * 257, 257, call.sampling_of(n), call.indices[n], position, scratch));
    }
}

}  // namespace bgpt
