// Uninitialised memory aligned to cache lines; large blocks use huge pages where the system has them, which reading
// hundreds of megabytes in sequence needs.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bgpt {

struct FreeAligned {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Aligned = std::unique_ptr<T[], FreeAligned>;

// Throws std::bad_alloc.
template <class T>
Aligned<T> aligned(int64_t count) {
    constexpr size_t huge = size_t{1} << 21;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T), alignment = bytes < huge ? 64 : huge;
    void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment + alignment);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Where the system refuses, only speed changes.
    if (alignment == huge) madvise(memory, bytes / huge * huge, MADV_HUGEPAGE);
#endif
    return Aligned<T>(static_cast<T*>(memory));
}

}  // namespace bgpt
