// Launches of kernels: each is checked against the device's limits and logged; none runs.
#include "kernels.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "limits.h"
#include "log.h"

namespace null_gpu {
namespace {

struct Kernel {
    int32_t name = 0;
    int shared = 48 << 10;  // dynamic shared memory that a launch may ask for
};

struct State {
    std::mutex mutex;
    std::unordered_map<const void*, Kernel> kernels;
};

State& state() {
    static State* const one = new State;
    return *one;
}

Kernel kernel_of(const void* function) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    const auto place = s.kernels.find(function);
    return place == s.kernels.end() ? Kernel{} : place->second;
}

struct Call {
    dim3 grid, block;
};

thread_local struct {
    Call call;
    size_t shared;
    cudaStream_t stream;
} pushed;

}  // namespace

void add_kernel(const void* function, const char* name) {
    const int32_t id = name_id(name);
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.kernels[function].name = id;
}

void allow_shared(const void* function, int bytes) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.kernels[function].shared = bytes;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, size_t shared, cudaStream_t stream, bool cooperative) {
    const Kernel kernel = kernel_of(function);
    const size_t threads = size_t{block.x} * block.y * block.z;
    const bool grid_fits = grid.x >= 1 && grid.x <= kMaxGridX && grid.y >= 1 && grid.y <= kMaxGridYZ && grid.z >= 1 &&
                           grid.z <= kMaxGridYZ;
    if (!grid_fits) return refuse("a grid that is empty or too large", cudaErrorInvalidConfiguration);
    if (threads < 1 || threads > kThreadsPerBlock)
        return refuse("a block that is empty or has more than 1,024 threads", cudaErrorInvalidConfiguration);
    if (shared > static_cast<size_t>(kernel.shared))
        return refuse("more dynamic shared memory than the kernel was allowed", cudaErrorInvalidValue);
    if (cooperative &&
        size_t{grid.x} * grid.y * grid.z > size_t(kMultiprocessors) * blocks_per_multiprocessor(threads, shared))
        return refuse("more blocks in a cooperative launch than are resident", cudaErrorCooperativeLaunchTooLarge);
    if (!stream && is_capturing())
        return refuse("a launch on the legacy stream during capture", cudaErrorStreamCaptureImplicit);
    record({.kind = Kind::kernel,
            .name = kernel.name,
            .grid = {grid.x, grid.y, grid.z},
            .threads = static_cast<uint32_t>(threads),
            .shared = static_cast<uint32_t>(shared)},
           stream);
    return cudaSuccess;
}

int blocks_per_multiprocessor(size_t threads, size_t shared) {
    const size_t by_threads = kThreadsPerMultiprocessor / std::max<size_t>(threads, 1);
    const size_t by_shared = kSharedPerMultiprocessor / (shared + (1 << 10));
    return static_cast<int>(std::min({by_threads, by_shared, size_t{32}}));
}

}  // namespace null_gpu

using null_gpu::launch;

extern "C" {

void** __cudaRegisterFatBinary(void*) {
    static void* handle[8];
    return handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
    null_gpu::add_kernel(function, name);
}

unsigned int __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    null_gpu::pushed = {{grid, block}, shared, stream};
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = null_gpu::pushed.call.grid;
    *block = null_gpu::pushed.call.block;
    *shared = null_gpu::pushed.shared;
    *static_cast<cudaStream_t*>(stream) = null_gpu::pushed.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t stream) {
    return launch(kernel, grid, block, shared, stream, false);
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t stream) {
    return launch(function, grid, block, shared, stream, false);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
    return launch(function, config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream, false);
}

cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared,
                                        cudaStream_t stream) {
    return launch(function, grid, block, shared, stream, true);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    *attributes = {};
    attributes->maxThreadsPerBlock = null_gpu::kThreadsPerBlock;
    attributes->numRegs = 64;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    attributes->maxDynamicSharedSizeBytes = 48 << 10;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value > null_gpu::kSharedPerBlock)
            return null_gpu::refuse("more shared memory than a block can have", cudaErrorInvalidValue);
        null_gpu::allow_shared(function, value);
    }
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int threads, size_t shared,
                                                                   unsigned int) {
    *blocks = null_gpu::blocks_per_multiprocessor(threads, shared);
    return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void** address, const void*) {
    static char symbol[4096];
    *address = symbol;
    return cudaSuccess;
}
}
