// A GPT-2 for inference: layers over caches of keys and values, their weights packed once. A token's bits do not depend
// on the other tokens of a call. Letters: T tokens, D width, H heads, d = D / H, F hidden width, L positions a slot, B
// slots.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "byte_decode/layer_weights.h"
#include "common/cpu.h"
#include "common/team.h"
#include "packed_linear/packed_linear.h"

namespace bgpt {

struct Norm {
    Norm(const float* weight, const float* bias, int64_t width)
        : weight(weight, weight + width), bias(bias, bias + width) {}
    std::vector<float> weight, bias;
};

// With copies of its parameters, which are fp32 and contiguous, weights [in, out].
struct Layer {
    Layer(const LayerWeights<float>& from, int64_t D, int64_t F, Precision precision);
    Norm ln_1, ln_2;
    PackedLinear attn, attn_proj, fc, mlp_proj;
};

struct Transformer {
    Transformer(int64_t D, int64_t H, int64_t F, float eps, Precision precision)
        : D(D), H(H), F(F), eps(eps), precision(precision) {}
    void add_layer(const LayerWeights<float>& from) {
        layers.push_back(std::make_unique<Layer>(from, D, F, precision));
    }
    // The last norm and the position embeddings [positions, D].
    void finish(const float* ln_f_weight, const float* ln_f_bias, const float* wpe, int64_t positions);
    int64_t bytes() const;  // of the packed weights

    int64_t D, H, F;
    float eps;
    Precision precision;
    std::vector<std::unique_ptr<Layer>> layers;
    std::unique_ptr<Norm> ln_f;
    std::vector<float> wpe;
    int64_t positions = 0;
};

// Keys and values of all layers, uninitialised: the system provides a slot's memory when it is first written.
struct Cache {
    Cache(const Transformer& transformer, int64_t B, int64_t L);
    int64_t B, L;
    // One of each a layer: [B, H, d, L] and [B, H, L, d], in fp32, or in bf16 where the linear layers have fewer bits.
    std::vector<Aligned<unsigned char>> keys, values;
};

// Memory for the activations of up to `rows` tokens.
struct Workspace {
    Workspace(const Transformer& transformer, int64_t rows);
    int64_t rows;
    int64_t input_row, hidden_row;          // elements from one token's inputs to the next, padding included
    Aligned<float> x, qkv, attended;        // [rows, D], [rows, 3 D], [rows, D]
    Aligned<unsigned char> inputs, hidden;  // of linear layers: [rows, input_row], [rows, hidden_row]
};

// Runs T <= workspace.rows tokens, embeddings in workspace.x [T, D] without their positions, through all layers and the
// last norm. Their keys and values are stored in the cache at (slots, positions) [T], which are all different, and each
// token attends to its slot's positions up to its own. The result is in workspace.inputs, as the inputs of a linear
// layer.
// Throws std::out_of_range for a slot or position outside the cache or the position embeddings.
void run_layers(const Transformer& transformer, Cache& cache, Workspace& workspace, const int64_t* slots,
                const int64_t* positions, int64_t T, Team& team, Isa isa);

// The same for any T, in chunks: x [T, D] to features y [T, D], fp32.
void features(const Transformer& transformer, Cache& cache, Workspace& workspace, const float* x, const int64_t* slots,
              const int64_t* positions, int64_t T, float* y, Team& team, Isa isa);

// All panels of a linear layer, on the team.
void linear(const PackedLinearCall& call, Team& team, Isa isa);

}  // namespace bgpt
