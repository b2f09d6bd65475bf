// A team of threads for a call of many short parallel phases: the threads exist for the call alone, so that none spins
// between calls and fork() stays safe, and they spin only from one phase to the next.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace bgpt {

// One thread, the owner, starts the phases; the others help. A chunk is claimed before it is run, and the owner waits
// for chunks, not for threads: a helper that the system has suspended, or that wakes late, delays nothing.
class Team {
  public:
    explicit Team(int64_t threads) : num_helpers_(std::max<int64_t>(threads, 1) - 1) {}
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;
    ~Team() {
        stop_.store(true, std::memory_order_relaxed);
        wake();
        for (auto& helper : helpers_) helper.join();
    }

    int64_t size() const { return num_helpers_ + 1; }

    // Calls body(begin, end) on chunks of [0, count) of `grain` items, and returns when all are done. The first
    // exception of a chunk is thrown again here. A single chunk runs on the owner without synchronisation.
    template <class Body>
    void for_each(int64_t count, int64_t grain, const Body& body) {
        const int64_t chunks = (count + grain - 1) / grain;
        if (chunks <= 1 || num_helpers_ == 0) {
            if (count > 0) body(int64_t{0}, count);
            return;
        }
        start();
        // Ticket 0 is no phase: a helper that still reads the last phase's ticket, whose chunks are all claimed, must
        // not mistake what is set up here for more of them.
        ticket_.store(0, std::memory_order_relaxed);
        body_.store(&body, std::memory_order_release);
        call_.store([](const void* any, int64_t begin, int64_t end) { (*static_cast<const Body*>(any))(begin, end); },
                    std::memory_order_release);
        count_.store(count, std::memory_order_release);
        grain_.store(grain, std::memory_order_release);
        done_.store(0, std::memory_order_relaxed);
        ++phase_;
        ticket_.store(phase_ << 32, std::memory_order_release);
        wake();
        while (claim()) {
        }
        for (int64_t spin = 0; done_.load(std::memory_order_acquire) < chunks; ++spin) {
            spin < kSpins ? pause() : std::this_thread::yield();
        }
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

  private:
    static constexpr int64_t kSpins = 2000;  // some 30 us

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    void start() {
        if (!helpers_.empty()) return;
        helpers_.reserve(num_helpers_);
        try {
            while (static_cast<int64_t>(helpers_.size()) < num_helpers_) helpers_.emplace_back([this] { help(); });
        } catch (const std::system_error&) {
            // The system has no more threads: those that exist do all the work.
            num_helpers_ = static_cast<int64_t>(helpers_.size());
        }
    }

    void wake() {
        signal_.fetch_add(1, std::memory_order_release);
        signal_.notify_all();
    }

    // Claims a chunk and runs it; false when none is unclaimed. What is read before the claim belongs to the claimed
    // phase: the owner withdraws the ticket before it changes any of it, so that the exchange fails for a thread that
    // has read new values.
    bool claim() {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        for (;;) {
            const void* body = body_.load(std::memory_order_acquire);
            const Call call = call_.load(std::memory_order_acquire);
            const int64_t count = count_.load(std::memory_order_acquire),
                          grain = grain_.load(std::memory_order_acquire);
            const int64_t begin = static_cast<int64_t>(ticket & 0xffffffffu) * grain;
            if (ticket == 0 || begin >= count) {
                const uint64_t now = ticket_.load(std::memory_order_acquire);
                if (now == ticket) return false;
                ticket = now;
                continue;
            }
            if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
            try {
                call(body, begin, std::min(begin + grain, count));
            } catch (...) {
                const std::lock_guard lock(mutex_);
                if (!error_) error_ = std::current_exception();
            }
            done_.fetch_add(1, std::memory_order_release);
            return true;
        }
    }

    void help() {
        uint32_t last_signal = 0;
        while (!stop_.load(std::memory_order_relaxed)) {
            while (claim()) {
            }
            for (int64_t spin = 0; spin < kSpins && signal_.load(std::memory_order_acquire) == last_signal; ++spin)
                pause();
            signal_.wait(last_signal, std::memory_order_acquire);
            last_signal = signal_.load(std::memory_order_acquire);
        }
    }

    using Call = void (*)(const void*, int64_t, int64_t);
    int64_t num_helpers_;
    std::vector<std::thread> helpers_;
    uint64_t phase_ = 0;
    alignas(64) std::atomic<uint64_t> ticket_{
        0};  // the phase's number in the upper half, the number of claimed chunks in the lower
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<uint32_t> signal_{0};
    std::atomic<const void*> body_{nullptr};
    std::atomic<Call> call_{nullptr};
    std::atomic<int64_t> count_{0}, grain_{1};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::exception_ptr error_;
};

}  // namespace bgpt
