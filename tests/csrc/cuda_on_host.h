// Runs the bodies of CUDA kernels on the host, for their values and for the sanitizers, one thread of the grid after
// the other. So it supports only kernels whose threads do not communicate: shared memory, barriers and shuffles do not
// compile here. tests/csrc/test_cuda_on_host.py includes it before a .cu file and rewrites `kernel<<<…>>>(…)` as a call
// of `launch`. Types and vector intrinsics are those of CUDA's own headers, which host compilers can read too.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace cuda_on_host {

inline thread_local uint3 thread, block;
inline thread_local dim3 threads, blocks;

template <class Body>
void launch(Body body, dim3 grid, dim3 block_size, size_t, cudaStream_t) {
    blocks = grid;
    threads = block_size;
    for (block.z = 0; block.z < grid.z; ++block.z) {
        for (block.y = 0; block.y < grid.y; ++block.y) {
            for (block.x = 0; block.x < grid.x; ++block.x) {
                for (thread.z = 0; thread.z < block_size.z; ++thread.z) {
                    for (thread.y = 0; thread.y < block_size.y; ++thread.y) {
                        for (thread.x = 0; thread.x < block_size.x; ++thread.x) body();
                    }
                }
            }
        }
    }
}

}  // namespace cuda_on_host

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static_assert(false, "cuda_on_host.h runs one thread after the other: no shared memory")
#define threadIdx (cuda_on_host::thread)
#define blockIdx (cuda_on_host::block)
#define blockDim (cuda_on_host::threads)
#define gridDim (cuda_on_host::blocks)

// The two functions of the runtime that the launching code calls.
extern "C" inline cudaError_t cudaGetLastError() { return cudaSuccess; }
extern "C" inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
