// The byte decoder on a GPU for few patches: all bytes, layers, the head and the sampling of each byte in one launch of
// one persistent kernel.
// Letters: N patches, S bytes a patch, D width, H heads, d = D / H, F hidden width, V = 257.
#pragma once

#include <cstdint>

#include "byte_decode/layer_weights.h"
#include "byte_decode/sampling.h"

namespace bgpt {

constexpr int32_t kPersistentLayers = 8;  // at most
constexpr int32_t kPersistentRows = 64;   // patches at most
constexpr int32_t kPersistentPositions = 32;
constexpr int32_t kPersistentWarps = 12;

struct PersistentShape {
    int32_t D, H, F, S, layers;
    float eps;
};

// Whether the kernel supports a model of this shape: at most 8 layers, 32 bytes a patch, a hidden width of 3,072 and
// heads of 256 channels, all widths multiples of 8.
bool persistent_supports(const PersistentShape& shape);

// Weights [outputs, inputs], W float or uint16_t holding bf16; the others in fp32. All on the device, aligned to 32
// bytes.
template <class W>
struct PersistentWeights {
    LayerWeights<W> layers[kPersistentLayers];
    const float *ln_f_weight, *ln_f_bias;
    const float* wpe;  // [S or more, D]
    const float* wte;  // [V, D]
    const W* head;     // [V, D]
};

// Memory through which the blocks exchange activations: on the device, fp32, uninitialised.
struct PersistentWorkspace {
    float* x;         // [N, D]: the residual stream
    float* q;         // [N, D]
    float* keys;      // [layers, N, S, D]
    float* values;    // [layers, N, S, D]
    float* attended;  // [N, D]
    float* partial;   // [D / group width, N, D]
    float* hidden;    // [N, F]
    float* logits;    // [N, V]
};

// Floats of a workspace for N patches, each of its parts padded to a multiple of 8.
int64_t persistent_workspace_size(const PersistentShape& shape, int64_t N);

// The parts of a workspace that starts at `memory`.
PersistentWorkspace persistent_workspace_at(float* memory, const PersistentShape& shape, int64_t N);

// As ByteDecodeCall of byte_decode.h, without drafts; on the device.
struct PersistentCall {
    const float* features;
    int32_t N;  // 1 … kPersistentRows
    const int16_t* prefix_tokens;
    const int64_t* max_tokens;
    const uint64_t* rng_streams;
    const uint64_t* byte_offsets;
    Sampling sampling;
    int16_t* tokens;  // filled with 256 before the launch
    int64_t* counts;
    float* logits;  // or null; positions that are not computed are not written
};

// One cooperative launch on `stream`. `arrived` is one uint32_t of the device. Throws std::runtime_error when the
// launch fails, std::invalid_argument for a shape or N that the kernel does not support. dtype 0 float, 1 bf16;
// `addresses`: the pointers of PersistentWeights in their order, 12 for each of shape.layers layers and then five.
void byte_decode_cuda(const PersistentShape& shape, int dtype, const uint64_t* addresses, const PersistentCall& call,
                      float* workspace, uint32_t* arrived, void* stream);

}  // namespace bgpt
