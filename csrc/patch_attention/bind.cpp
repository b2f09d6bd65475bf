#include "common/bind.h"

#include "patch_attention/short_attention.h"

namespace bgpt {

void bind_patch_attention(py::module_& m) {
    m.attr("short_attention_max_length") = kMaxShortSequence;
    def(
        m, "short_attention", {"q", "k", "v", "stride", "y", "B", "length", "starts", "H", "d", "bf16", "threads"},
        +[](const void* q, const void* k, const void* v, int64_t stride, void* y, int64_t B, int64_t length,
            const int32_t* starts, int64_t H, int64_t d, bool bf16, int64_t threads) {
            with_element_type(bf16, [&]<class X>(X*) {
                const auto in = [](const void* address) { return static_cast<const X*>(address); };
                const QKV<const X> qkv{in(q), in(k), in(v), stride};
                short_attention(qkv, static_cast<X*>(y), {B, length, starts}, H, d, threads);
            });
        });
    def(
        m, "short_attention_backward",
        {"dy", "q", "k", "v", "stride", "dq", "dk", "dv", "dstride", "B", "length", "starts", "H", "d", "bf16",
         "threads"},
        +[](const void* dy, const void* q, const void* k, const void* v, int64_t stride, void* dq, void* dk, void* dv,
            int64_t dstride, int64_t B, int64_t length, const int32_t* starts, int64_t H, int64_t d, bool bf16,
            int64_t threads) {
            with_element_type(bf16, [&]<class X>(X*) {
                const auto in = [](const void* address) { return static_cast<const X*>(address); };
                const auto out = [](void* address) { return static_cast<X*>(address); };
                const QKV<const X> qkv{in(q), in(k), in(v), stride};
                short_attention_backward(in(dy), qkv, {out(dq), out(dk), out(dv), dstride}, {B, length, starts}, H, d,
                                         threads);
            });
        });
}

}  // namespace bgpt
