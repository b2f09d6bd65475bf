// The device: one H200, as `cudaGetDeviceProperties` describes it.
#include <cuda.h>
#include <dlfcn.h>

#include <cstring>

#include "limits.h"
#include "log.h"

using null_gpu::kSharedPerBlock;
using null_gpu::kSharedPerMultiprocessor;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : null_gpu::refuse("cudaSetDevice", cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {};
    std::strcpy(properties->name, "NVIDIA H200");
    properties->totalGlobalMem = null_gpu::kMemory;
    properties->major = 9;
    properties->minor = 0;
    properties->multiProcessorCount = null_gpu::kMultiprocessors;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = kSharedPerBlock;
    properties->sharedMemPerMultiprocessor = kSharedPerMultiprocessor;
    properties->reservedSharedMemPerBlock = 1 << 10;
    properties->maxThreadsPerBlock = null_gpu::kThreadsPerBlock;
    properties->maxThreadsPerMultiProcessor = null_gpu::kThreadsPerMultiprocessor;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->warpSize = 32;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->l2CacheSize = 60 << 20;
    properties->maxGridSize[0] = null_gpu::kMaxGridX;
    properties->maxGridSize[1] = properties->maxGridSize[2] = null_gpu::kMaxGridYZ;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->textureAlignment = 512;
    properties->memPitch = 0x7fffffff;
    properties->cooperativeLaunch = 1;
    properties->concurrentKernels = properties->asyncEngineCount = 1;
    properties->unifiedAddressing = properties->managedMemory = properties->concurrentManagedAccess = 1;
    properties->canMapHostMemory = 1;
    properties->memoryBusWidth = 6144;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, 0);
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = properties.major;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = properties.minor;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = properties.multiProcessorCount;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = properties.sharedMemPerBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = kSharedPerBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = kSharedPerMultiprocessor;
            break;
        case cudaDevAttrReservedSharedMemoryPerBlock:
            *value = 1 << 10;
            break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor:
            *value = 65536;
            break;
        case cudaDevAttrMaxThreadsPerBlock:
            *value = null_gpu::kThreadsPerBlock;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = null_gpu::kThreadsPerMultiprocessor;
            break;
        case cudaDevAttrMaxBlocksPerMultiprocessor:
            *value = 32;
            break;
        case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY:
            *value = 1024;
            break;
        case cudaDevAttrMaxBlockDimZ:
            *value = 64;
            break;
        case cudaDevAttrMaxGridDimX:
            *value = null_gpu::kMaxGridX;
            break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ:
            *value = null_gpu::kMaxGridYZ;
            break;
        case cudaDevAttrWarpSize:
            *value = 32;
            break;
        case cudaDevAttrL2CacheSize:
            *value = properties.l2CacheSize;
            break;
        case cudaDevAttrClockRate:
            *value = 1'980'000;
            break;
        case cudaDevAttrMemoryClockRate:
            *value = 3'201'000;
            break;
        case cudaDevAttrGlobalMemoryBusWidth:
            *value = properties.memoryBusWidth;
            break;
        case cudaDevAttrTextureAlignment:
            *value = 512;
            break;
        case cudaDevAttrCooperativeLaunch:
        case cudaDevAttrUnifiedAddressing:
        case cudaDevAttrManagedMemory:
        case cudaDevAttrConcurrentManagedAccess:
        case cudaDevAttrMemoryPoolsSupported:
            *value = 1;
            break;
        default:
            *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int) {
    std::strncpy(id, "0000:00:00.0", length);
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return null_gpu::record_wait("cudaDeviceSynchronize", null_gpu::is_capturing()); }

cudaError_t cudaGetLastError() { return null_gpu::take_last_error(); }
cudaError_t cudaPeekAtLastError() { return null_gpu::last_error(); }

const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureImplicit:
            return "operation would make the legacy stream depend on a capturing blocking stream";
        case cudaErrorCapturedEvent:
            return "operation not permitted on an event last recorded in a capturing stream";
        case cudaErrorCooperativeLaunchTooLarge:
            return "too many blocks in cooperative launch";
        case cudaErrorNotSupported:
            return "operation not supported by the null GPU";
        default:
            return "error of the null GPU";
    }
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

static CUresult unsupported() {
    null_gpu::refuse("a function of the driver that the null GPU does not have", cudaErrorNotSupported);
    return CUDA_ERROR_NOT_SUPPORTED;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned int, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = reinterpret_cast<void*>(unsupported);
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
}
