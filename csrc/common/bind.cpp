#include "common/bind.h"

namespace bgpt {

void bind_common(py::module_& m) {
#ifdef BGPT_FAST_WITH_CUDA
    m.attr("with_cuda") = true;
#else
    m.attr("with_cuda") = false;
#endif
    m.def("best_isa", [] { return static_cast<int>(best_isa()); });
    m.def("is_intel", &is_intel);
}

}  // namespace bgpt
