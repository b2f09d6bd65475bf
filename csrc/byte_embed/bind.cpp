#include "common/bind.h"

#include "byte_embed/byte_embed.h"

namespace bgpt {

void bind_byte_embed(py::module_& m) {
    def(
        m, "byte_embed",
        {"features", "patches", "wte", "wpe", "x", "T", "S", "D", "bf16", "tables_bf16", "threads", "isa"},
        +[](const void* features, const int16_t* patches, const void* wte, const void* wpe, void* x, int64_t T_,
            int64_t S, int64_t D, bool bf16, bool tables_bf16, int64_t threads, Isa isa) {
            const auto call = [&]<class T, class W>(T* out, W*) {
                byte_embed(static_cast<const T*>(features), patches, static_cast<const W*>(wte),
                           static_cast<const W*>(wpe), out, T_, S, D, threads, isa);
            };
            if (!bf16) return call(static_cast<float*>(x), static_cast<float*>(nullptr));
            with_element_type(tables_bf16, [&]<class W>(W* table) { call(static_cast<uint16_t*>(x), table); });
        });
    def(
        m, "byte_embed_backward",
        {"dx", "patches", "dfeatures", "dwte", "dwpe", "T", "S", "D", "bf16", "threads", "isa"},
        +[](const void* dx, const int16_t* patches, void* dfeatures, float* dwte, float* dwpe, int64_t T_, int64_t S,
            int64_t D, bool bf16, int64_t threads, Isa isa) {
            with_element_type(bf16, [&]<class T>(T*) {
                byte_embed_backward(static_cast<const T*>(dx), patches, static_cast<T*>(dfeatures), dwte, dwpe, T_, S,
                                    D, threads, isa);
            });
        });
}

}  // namespace bgpt
