// patch_embed on a GPU: a warp-wide gather of S weight rows a patch, from L2 at the paper's size (12.6 MB in bf16).
// Reads 2 S bytes of tokens, S rows and one of a position, writes one row: bound by memory. Not yet run on a GPU.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/cuda_check.h"
#include "patch_embed/patch_embed.h"

namespace bgpt {
namespace {

constexpr int kThreads = 128;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void store(float x, float* out) { *out = x; }
__device__ inline void store(float x, __nv_bfloat16* out) { *out = __float2bfloat16(x); }
__device__ inline void store(float x, __half* out) { *out = __float2half(x); }

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    _patch_embed_fwd_kernel(const int16_t* __restrict__ patches, const T* __restrict__ rows, const T* __restrict__ bias,
                            const T* __restrict__ position_rows, const int64_t* __restrict__ positions,
                            T* __restrict__ y, int64_t P, int64_t S, int64_t D, int64_t L) {
    // Patches along x, where the grid may have 2^31 blocks; columns along y.
    const int64_t d = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
    if (d >= D) return;
    for (int64_t p = blockIdx.x; p < P; p += gridDim.x) {
        float sum = to_float(bias[d]);
        for (int64_t s = 0; s < S; ++s) {
            const int64_t token = patches[p * S + s];
            if (token >= 0 && token < V) sum += to_float(rows[(V * s + token) * D + d]);
        }
        if (positions != nullptr) {
            const int64_t position = positions[p];
            if (position >= 0 && position < L) sum += to_float(position_rows[position * D + d]);
        }
        store(sum, y + p * D + d);
    }
}

template <class T, int V>
void launch(const int16_t* patches, const void* rows, const void* bias, const void* position_rows,
            const int64_t* positions, void* y, int64_t P, int64_t S, int64_t D, int64_t L, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(P < (1 << 30) ? P : (1 << 30)),
                    static_cast<unsigned>((D + kThreads - 1) / kThreads));
    _patch_embed_fwd_kernel<T, V><<<grid, kThreads, 0, stream>>>(
        patches, static_cast<const T*>(rows), static_cast<const T*>(bias), static_cast<const T*>(position_rows),
        positions, static_cast<T*>(y), P, S, D, L);
    cuda_check(cudaGetLastError(), "patch_embed");
}

}  // namespace

void patch_embed_cuda(const int16_t* patches, const void* rows, const void* bias, const void* position_rows,
                      const int64_t* positions, void* y, int64_t P, int64_t S, int64_t D, int64_t V, int64_t L,
                      int dtype, void* stream) {
    if (P == 0 || D == 0) return;
    const auto run = [=](auto typed_launch) {
        typed_launch(patches, rows, bias, position_rows, positions, y, P, S, D, L, static_cast<cudaStream_t>(stream));
    };
    with_vocab_size(V, [&]<int kV>() {
        if (dtype == 0) run(launch<float, kV>);
        if (dtype == 1) run(launch<__nv_bfloat16, kV>);
        if (dtype == 2) run(launch<__half, kV>);
    });
}

}  // namespace bgpt
