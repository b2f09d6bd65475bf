// A barrier over all blocks of a launch whose blocks all run at once, in two halves: between them a block may do what
// depends on no other block.
#pragma once

#include <cstdint>

#include "byte_decode/lanes.h"

#if !defined(__CUDACC__)
#include <atomic>
#include <thread>
#endif

namespace bgpt {

// For one thread of each block; the block's own barrier, before arrive() and after wait(), synchronises the others.
class GridBarrier {
  public:
    // `arrived` is 0 at the launch, and counts the blocks' arrivals at all barriers.
    BGPT_DEVICE GridBarrier(uint32_t* arrived, uint32_t blocks) : arrived_(arrived), blocks_(blocks) {}

    // What the block wrote before is visible to the blocks that have waited.
    BGPT_DEVICE void arrive() {
        expected_ += blocks_;
#if defined(__CUDACC__)
        // A release is cumulative: it covers what the block's other threads wrote before the block's barrier.
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived_) : "memory");
#else
        std::atomic_ref<uint32_t>(*arrived_).fetch_add(1, std::memory_order_release);
#endif
    }

    BGPT_DEVICE void wait() {
        while (static_cast<int32_t>(arrived_count() - expected_) < 0) {
#if !defined(__CUDACC__)
            std::this_thread::yield();
#endif
        }
    }

  private:
    BGPT_DEVICE uint32_t arrived_count() {
#if defined(__CUDACC__)
        uint32_t count;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrived_) : "memory");
        return count;
#else
        return std::atomic_ref<uint32_t>(*arrived_).load(std::memory_order_acquire);
#endif
    }

    uint32_t* arrived_;
    uint32_t blocks_;
    uint32_t expected_ = 0;
};

}  // namespace bgpt
