#include "byte_decode/accept.h"

namespace bgpt {

void byte_accept(const AcceptCall& call) {
    Scratch scratch;
    for (int64_t n = 0; n < call.N; ++n) {
        if (call.active[n] == 0) continue;
        call.accept(n, choose(call.logits + n * call.V, call.V, call.sampling_of(n), call.rng_streams[n],
                              call.byte_offset_of(n), scratch));
    }
}

}  // namespace bgpt
