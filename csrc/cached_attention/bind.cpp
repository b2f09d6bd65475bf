#include "common/bind.h"

#include "cached_attention/cached_attention.h"

namespace bgpt {

void bind_cached_attention(py::module_& m) {
    def(
        m, "cached_attention",
        {"qkv", "keys", "values", "slots", "positions", "y", "T", "H", "d", "L", "B", "threads", "isa"},
        +[](const float* qkv, void* keys, void* values, const int64_t* slots, const int64_t* positions, float* y,
            int64_t T, int64_t H, int64_t d, int64_t L, int64_t B, int64_t threads,
            Isa isa) { cached_attention({qkv, keys, values, slots, positions, y, T, H, d, L, B}, threads, isa); });
}

}  // namespace bgpt
