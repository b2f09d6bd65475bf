// The addresses of a GPT-2 layer's parameters, in the order in which Python passes them.
#pragma once

namespace bgpt {

// Weights of type W, the others in fp32.
template <class W>
struct LayerWeights {
    const float *ln_1_weight, *ln_1_bias;
    const W* attn_weight;
    const float* attn_bias;
    const W* attn_proj_weight;
    const float* attn_proj_bias;
    const float *ln_2_weight, *ln_2_bias;
    const W* fc_weight;
    const float* fc_bias;
    const W* mlp_proj_weight;
    const float* mlp_proj_bias;
};

}  // namespace bgpt
