// Memory of the device: addresses of a large reserved range of the host's, of which pages exist once they are written.
//
// Copies and fills of up to kSmall bytes are made, so that integers that the host wrote can be read back. Larger ones
// are not: they would need the memory of a GPU. What the host reads from a larger block is zeros.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>

#include "limits.h"
#include "log.h"

namespace null_gpu {
bool may_allocate();  // in streams.cpp: whether a capture in progress permits it
}  // namespace null_gpu

namespace {

using null_gpu::Kind;

constexpr size_t kReserved = size_t{1} << 42;
constexpr size_t kSmall = 256 << 10;
constexpr size_t kGranularity = 2 << 20;

struct Memory {
    std::mutex mutex;
    // Shared, so that the limit of a process's own memory does not count what is only reserved.
    char* base = static_cast<char*>(
        mmap(nullptr, kReserved, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    size_t reached = 0;
    size_t used = 0;
    std::map<char*, size_t> blocks;
    std::map<size_t, std::vector<char*>> free;
    std::map<const char*, size_t> pinned;
};

Memory& memory() {
    static Memory* const one = new Memory;
    return *one;
}

bool on_device(const void* pointer) {
    const Memory& m = memory();
    const char* address = static_cast<const char*>(pointer);
    return m.base != MAP_FAILED && address >= m.base && address < m.base + kReserved;
}

bool is_pinned(const void* pointer) {
    Memory& m = memory();
    const std::lock_guard lock(m.mutex);
    auto next = m.pinned.upper_bound(static_cast<const char*>(pointer));
    if (next == m.pinned.begin()) return false;
    const auto& [begin, size] = *std::prev(next);
    return static_cast<const char*>(pointer) < begin + size;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream, bool waits) {
    const bool into = on_device(to), out = on_device(from);
    if (!into && out) {
        const bool pinned = is_pinned(to);
        if (null_gpu::is_capturing(stream) && !pinned)
            return null_gpu::refuse("a copy to pageable memory during capture", cudaErrorStreamCaptureUnsupported);
        null_gpu::record(
            {.kind = Kind::copy_to_host, .name = null_gpu::name_id("copy to host"), .bytes = int64_t(bytes)}, stream);
        if (bytes <= kSmall)
            std::memcpy(to, from, bytes);
        else
            std::memset(to, 0, bytes);
        if (waits || !pinned) return null_gpu::record_wait("copy to pageable memory", false);
    } else if (into && out) {
        null_gpu::record(
            {.kind = Kind::copy_on_device, .name = null_gpu::name_id("copy on device"), .bytes = int64_t(bytes)},
            stream);
        if (bytes <= kSmall) std::memmove(to, from, bytes);
    } else if (into) {
        const bool pinned = is_pinned(from);
        if (null_gpu::is_capturing(stream) && !pinned)
            return null_gpu::refuse("a copy from pageable memory during capture", cudaErrorStreamCaptureUnsupported);
        null_gpu::record({.kind = pinned ? Kind::copy_to_device : Kind::copy_pageable,
                          .name = null_gpu::name_id(pinned ? "copy to device" : "copy to device from pageable memory"),
                          .bytes = int64_t(bytes)},
                         stream);
        if (bytes <= kSmall) std::memcpy(to, from, bytes);
    } else {
        std::memmove(to, from, bytes);
    }
    return cudaSuccess;
}

cudaError_t fill(void* at, int value, size_t bytes, cudaStream_t stream) {
    null_gpu::record({.kind = Kind::fill, .name = null_gpu::name_id("fill"), .bytes = int64_t(bytes)}, stream);
    if (bytes <= kSmall) std::memset(at, value, bytes);
    return cudaSuccess;
}

}  // namespace

int64_t null_gpu_memory() {
    Memory& m = memory();
    const std::lock_guard lock(m.mutex);
    return static_cast<int64_t>(m.used);
}

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t size) {
    if (!null_gpu::may_allocate())
        return null_gpu::refuse("cudaMalloc during capture", cudaErrorStreamCaptureUnsupported);
    size = (size + kGranularity - 1) / kGranularity * kGranularity;
    null_gpu::record({.kind = Kind::allocate, .name = null_gpu::name_id("cudaMalloc"), .bytes = int64_t(size)});
    Memory& m = memory();
    const std::lock_guard lock(m.mutex);
    if (m.used + size > null_gpu::kMemory || (m.free[size].empty() && m.reached + size > kReserved))
        return cudaErrorMemoryAllocation;
    char* block = m.base + m.reached;
    if (auto& free = m.free[size]; !free.empty()) {
        block = free.back();
        free.pop_back();
    } else {
        m.reached += size;
    }
    m.blocks[block] = size;
    m.used += size;
    *pointer = block;
    return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
    if (!pointer) return cudaSuccess;
    Memory& m = memory();
    const std::lock_guard lock(m.mutex);
    const auto place = m.blocks.find(static_cast<char*>(pointer));
    if (place == m.blocks.end()) return cudaErrorInvalidValue;
    const auto [block, size] = *place;
    madvise(block, size, MADV_REMOVE);
    m.free[size].push_back(block);
    m.used -= size;
    m.blocks.erase(place);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *total = null_gpu::kMemory;
    *free = null_gpu::kMemory - static_cast<size_t>(null_gpu_memory());
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned int) {
    null_gpu::record({.kind = Kind::allocate, .name = null_gpu::name_id("cudaHostAlloc"), .bytes = int64_t(size)});
    *pointer = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    return cudaHostRegister(*pointer, size, 0);
}

cudaError_t cudaFreeHost(void* pointer) {
    cudaHostUnregister(pointer);
    std::free(pointer);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void* pointer, size_t size, unsigned int) {
    Memory& m = memory();
    const std::lock_guard lock(m.mutex);
    m.pinned[static_cast<const char*>(pointer)] = size;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* pointer) {
    Memory& m = memory();
    const std::lock_guard lock(m.mutex);
    m.pinned.erase(static_cast<const char*>(pointer));
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    *attributes = {};
    const bool device = on_device(pointer), pinned = !device && is_pinned(pointer);
    attributes->type = device ? cudaMemoryTypeDevice : pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    if (device || pinned) attributes->devicePointer = const_cast<void*>(pointer);
    if (!device) attributes->hostPointer = const_cast<void*>(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return copy(to, from, bytes, stream, false);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    if (null_gpu::is_capturing())
        return null_gpu::refuse("cudaMemcpy during capture", cudaErrorStreamCaptureUnsupported);
    copy(to, from, bytes, nullptr, true);
    return null_gpu::record_wait("cudaMemcpy", false);
}

cudaError_t cudaMemset(void* at, int value, size_t bytes) { return fill(at, value, bytes, nullptr); }

cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
    return fill(at, value, bytes, stream);
}
}

namespace null_gpu {
bool is_on_device(const void* pointer) { return on_device(pointer); }
}  // namespace null_gpu
