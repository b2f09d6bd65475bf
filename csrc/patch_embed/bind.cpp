#include "common/bind.h"

#include "patch_embed/patch_embed.h"

namespace bgpt {

void bind_patch_embed(py::module_& m) {
    def(m, "patches_in_range", {"patches", "count", "V"}, &patches_in_range);
    def(m, "positions_in_range", {"positions", "count", "L"}, &positions_in_range);
    def(
        m, "patch_embed",
        {"patches", "rows", "bias", "position_rows", "positions", "y", "P", "S", "D", "V", "bf16", "threads", "isa"},
        +[](const int16_t* patches, const void* rows, const void* bias, const void* position_rows,
            const int64_t* positions, void* y, int64_t P, int64_t S, int64_t D, int64_t V, bool bf16, int64_t threads,
            Isa isa) {
            with_element_type(bf16, [&]<class T>(T*) {
                const auto in = [](const void* address) { return static_cast<const T*>(address); };
                patch_embed(patches, in(rows), in(bias), in(position_rows), positions, static_cast<T*>(y), P, S, D, V,
                            threads, isa);
            });
        });
    def(
        m, "patch_embed_backward", {"dy", "patches", "rows", "P", "S", "D", "V", "bf16", "threads", "isa"},
        +[](const void* dy, const int16_t* patches, void* rows, int64_t P, int64_t S, int64_t D, int64_t V, bool bf16,
            int64_t threads, Isa isa) {
            with_element_type(bf16, [&]<class T>(T*) {
                patch_embed_backward(static_cast<const T*>(dy), patches, static_cast<T*>(rows), P, S, D, V, threads,
                                     isa);
            });
        });
    def(m, "patch_embed_cuda",
        {"patches", "rows", "bias", "position_rows", "positions", "y", "P", "S", "D", "V", "L", "dtype", "stream"},
        &BGPT_CUDA(patch_embed_cuda));
}

}  // namespace bgpt
