// Kernels by the address that a launch names: a host function of the runtime, or a handle of the driver.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

namespace null_gpu {

void add_kernel(const void* function, const char* name);
// Sets the dynamic shared memory that launches of a kernel may ask for, in bytes; 48 KB until then.
void allow_shared(const void* function, int bytes);
// Checks and logs one launch.
cudaError_t launch(const void* function, dim3 grid, dim3 block, size_t shared, cudaStream_t stream, bool cooperative);
// How many blocks are resident at once by threads and shared memory; registers are not known.
int blocks_per_multiprocessor(size_t threads, size_t shared);

}  // namespace null_gpu
