// A barrier of all blocks of a launch whose blocks all run at once, in two halves: between them a block may do what
// needs nothing of the others.
#pragma once

#include <cstdint>

#include "byte_decode/lanes.h"

#if !defined(__CUDACC__)
#include <atomic>
#include <thread>
#endif

namespace bgpt {

// For one thread of each block, which the block's own barrier joins with the others: before arrive(), after wait().
class GridBarrier {
  public:
    // `arrived` is 0 before the first block comes, and counts the blocks that have come to any barrier.
    BGPT_DEVICE GridBarrier(uint32_t* arrived, uint32_t blocks) : arrived_(arrived), blocks_(blocks) {}

    // What the block wrote before is there for whoever waits.
    BGPT_DEVICE void arrive() {
        expected_ += blocks_;
#if defined(__CUDACC__)
        // What the block's other threads wrote too, whom its barrier joined before: a release is cumulative.
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived_) : "memory");
#else
        std::atomic_ref<uint32_t>(*arrived_).fetch_add(1, std::memory_order_release);
#endif
    }

    BGPT_DEVICE void wait() {
        while (static_cast<int32_t>(come() - expected_) < 0) {
#if !defined(__CUDACC__)
            std::this_thread::yield();
#endif
        }
    }

  private:
    BGPT_DEVICE uint32_t come() {
#if defined(__CUDACC__)
        uint32_t found;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(arrived_) : "memory");
        return found;
#else
        return std::atomic_ref<uint32_t>(*arrived_).load(std::memory_order_acquire);
#endif
    }

    uint32_t* arrived_;
    uint32_t blocks_;
    uint32_t expected_ = 0;
};

}  // namespace bgpt
