// The extension bgpt_fast._C: each folder's bind.cpp binds its own functions.
#include <pybind11/pybind11.h>

namespace bgpt {
using Bind = void(pybind11::module_&);
Bind bind_bias_gelu, bind_byte_decode, bind_byte_embed, bind_cached_attention, bind_common, bind_cpu_states,
    bind_invariant_linear, bind_layer_norm, bind_linear_cross_entropy, bind_matrix_product, bind_patch_attention,
    bind_patch_embed, bind_patches, bind_symmetric_product;
}  // namespace bgpt

PYBIND11_MODULE(_C, m) {
    m.doc() = "C++ and CUDA parts of bgpt_fast";
    for (bgpt::Bind* bind :
         {bgpt::bind_common, bgpt::bind_patches, bgpt::bind_patch_embed, bgpt::bind_patch_attention,
          bgpt::bind_bias_gelu, bgpt::bind_layer_norm, bgpt::bind_linear_cross_entropy, bgpt::bind_matrix_product,
          bgpt::bind_invariant_linear, bgpt::bind_cached_attention, bgpt::bind_byte_decode, bgpt::bind_byte_embed,
          bgpt::bind_cpu_states, bgpt::bind_symmetric_product}) {
        bind(m);
    }
}
