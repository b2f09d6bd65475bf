// The byte decoder on a GPU: a persistent kernel for few patches (persistent_body.h), and for many, whose layers torch
// runs, the sampling of a byte (accept.h). Not yet run on a GPU.
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "byte_decode/accept.h"
#include "byte_decode/grid_barrier.h"
#include "byte_decode/persistent.h"
#include "byte_decode/persistent_body.h"
#include "common/cuda_check.h"

namespace bgpt {
namespace {

constexpr int kThreads = static_cast<int>(kPersistentWarps * kLanes);

struct DeviceGrid {
    __device__ DeviceGrid(uint32_t* arrived)
        : block(static_cast<int32_t>(blockIdx.x)),
          blocks(static_cast<int32_t>(gridDim.x)),
          warp(static_cast<int32_t>(threadIdx.x / kLanes)),
          warps(kPersistentWarps),
          barrier(arrived, gridDim.x) {}
    __device__ void sync() { __syncthreads(); }
    __device__ void arrive() {
        __syncthreads();
        if (threadIdx.x == 0) barrier.arrive();
    }
    __device__ void wait() {
        if (threadIdx.x == 0) barrier.wait();
        __syncthreads();
    }
    const int32_t block, blocks, warp, warps;
    GridBarrier barrier;
};

template <class W>
__global__ void __launch_bounds__(kThreads, 1)
    _byte_decode_kernel(const __grid_constant__ PersistentPlan plan,
                        const __grid_constant__ PersistentWeights<W> weights,
                        const __grid_constant__ PersistentCall call,
                        const __grid_constant__ PersistentWorkspace workspace, uint32_t* arrived) {
    extern __shared__ __align__(16) unsigned char shared[];
    DeviceGrid grid(arrived);
    Persistent<W, DeviceGrid>(plan, weights, call, workspace, grid, shared).run();
}

// A warp a row.
template <int V>
__global__ void __launch_bounds__(kLanes) _byte_accept_kernel(const AcceptCall call) {
    __shared__ double ranked[kLanes * kTokensPerLane];
    for (int64_t n = blockIdx.x; n < call.N; n += gridDim.x) {
        if (call.active[n] == 0) continue;
        const int32_t sampled = choose_by_warp<V>(call.logits + n * V, call.sampling_of(n), call.rng_streams[n],
                                                  call.byte_offset_of(n), ranked);
        sync_lanes();
        if (threadIdx.x == 0) call.accept(n, sampled);
    }
}

template <class W>
PersistentWeights<W> weights_at(const PersistentShape& shape, const uint64_t* addresses) {
    static_assert(sizeof(LayerWeights<W>) == 12 * sizeof *addresses && std::is_trivial_v<PersistentWeights<W>>);
    PersistentWeights<W> weights{};
    std::memcpy(weights.layers, addresses, shape.layers * sizeof(LayerWeights<W>));
    std::memcpy(&weights.ln_f_weight, addresses + 12 * shape.layers, 5 * sizeof *addresses);
    return weights;
}

template <class W>
void launch(PersistentShape shape, const uint64_t* addresses, PersistentCall call, float* memory, uint32_t* arrived,
            cudaStream_t stream) {
    int device = 0, blocks = 0, cooperative = 0;
    cuda_check(cudaGetDevice(&device), "byte_decode");
    cuda_check(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device), "byte_decode");
    cuda_check(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device), "byte_decode");
    if (cooperative == 0) throw std::runtime_error("byte_decode: this GPU has no cooperative launch");
    PersistentPlan plan = plan_of<W>(shape, call.N, blocks, kPersistentWarps);
    const auto kernel = _byte_decode_kernel<W>;
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared), "byte_decode");
    PersistentWeights<W> weights = weights_at<W>(shape, addresses);
    PersistentWorkspace workspace = persistent_workspace_at(memory, shape, call.N);
    cuda_check(cudaMemsetAsync(arrived, 0, sizeof *arrived, stream), "byte_decode");
    void* arguments[] = {&plan, &weights, &call, &workspace, &arrived};
    cuda_check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(kThreads),
                                           arguments, plan.shared, stream),
               "byte_decode");
}

}  // namespace

void byte_decode_cuda(const PersistentShape& shape, int dtype, const uint64_t* addresses, const PersistentCall& call,
                      float* workspace, uint32_t* arrived, void* stream) {
    if (!persistent_supports(shape) || call.N < 1 || call.N > kPersistentRows) {
        throw std::invalid_argument(
            "byte_decode: expected a shape and number of patches that the kernel supports, got others");
    }
    const auto run = dtype == 0 ? launch<float> : launch<uint16_t>;
    run(shape, addresses, call, workspace, arrived, static_cast<cudaStream_t>(stream));
}

void byte_accept_cuda(const AcceptCall& call, void* stream) {
    if (call.N == 0) return;
    const unsigned blocks = static_cast<unsigned>(call.N < (1 << 30) ? call.N : 1 << 30);
    with_vocab_size(call.V, [&]<int V>() {
        _byte_accept_kernel<V><<<blocks, kLanes, 0, static_cast<cudaStream_t>(stream)>>>(call);
    });
    cuda_check(cudaGetLastError(), "byte_accept");
}

}  // namespace bgpt
