// The Philox stream on a GPU: one thread generates one instance, with the functions that the host runs. Programs differ
// in length and path, so warps diverge; writing the traces (3.1 KB an instance) bounds the time. Not yet run on a GPU.
#include "common/cuda_check.h"
#include "cpu_states/philox_stream.h"

namespace bgpt::cpu_states {
namespace {

constexpr int kThreads = 128;

unsigned blocks_for(int64_t count) {
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    return static_cast<unsigned>(blocks < (1 << 30) ? blocks : 1 << 30);
}

__global__ void __launch_bounds__(kThreads)
    _cpu_states_sizes_kernel(Options options, uint64_t seed, int64_t start, int64_t count, int64_t* sizes) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
        const int32_t length = draw_length(options, seed, static_cast<uint64_t>(start + i));
        sizes[i] = trace_size(options.num_registers, options.memory_size, length);
    }
}

__global__ void __launch_bounds__(kThreads)
    _cpu_states_write_kernel(Options options, uint64_t seed, int64_t start, int64_t count, const int64_t* offsets,
                             uint8_t* out, int64_t capacity, bool* in_eval) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
        const uint64_t index = static_cast<uint64_t>(start + i);
        const int32_t length = draw_length(options, seed, index);
        const int64_t offset = offsets[i];
        if (offset < 0 || offset > capacity - trace_size(options.num_registers, options.memory_size, length)) continue;
        write_instance(options, seed, index, out + offset);
        in_eval[i] = is_eval(program_hash(out + offset, length));
    }
}

}  // namespace

void sizes_cuda(const Options& options, uint64_t seed, int64_t start, int64_t count, int64_t* sizes, void* stream) {
    if (count == 0) return;
    _cpu_states_sizes_kernel<<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        options, seed, start, count, sizes);
    cuda_check(cudaGetLastError(), "cpu_states sizes");
}

void write_cuda(const Options& options, uint64_t seed, int64_t start, int64_t count, const int64_t* offsets,
                uint8_t* out, int64_t capacity, bool* in_eval, void* stream) {
    if (count == 0) return;
    _cpu_states_write_kernel<<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        options, seed, start, count, offsets, out, capacity, in_eval);
    cuda_check(cudaGetLastError(), "cpu_states write");
}

}  // namespace bgpt::cpu_states
