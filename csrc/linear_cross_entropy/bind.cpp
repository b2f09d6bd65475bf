#include "common/bind.h"

#include "linear_cross_entropy/cross_entropy.h"

namespace bgpt {

void bind_linear_cross_entropy(py::module_& m) {
    def(
        m, "cross_entropy", {"logits", "targets", "nats", "lse", "N", "V", "bf16", "threads", "isa"},
        +[](const void* logits, const int64_t* targets, float* nats, float* lse, int64_t N, int64_t V, bool bf16,
            int64_t threads, Isa isa) {
            with_element_type(bf16, [&]<class X>(X*) {
                cross_entropy(static_cast<const X*>(logits), targets, nats, lse, N, V, threads, isa);
            });
        });
    def(
        m, "cross_entropy_backward", {"logits", "targets", "dnats", "dlogits", "N", "V", "bf16", "threads", "isa"},
        +[](const void* logits, const int64_t* targets, const float* dnats, void* dlogits, int64_t N, int64_t V,
            bool bf16, int64_t threads, Isa isa) {
            with_element_type(bf16, [&]<class X>(X*) {
                cross_entropy_backward(static_cast<const X*>(logits), targets, dnats, static_cast<X*>(dlogits), N, V,
                                       threads, isa);
            });
        });
}

}  // namespace bgpt
