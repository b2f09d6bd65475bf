// A parallel loop on short-lived threads: no pool, so that nothing spins on a busy core and fork() stays safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace bgpt {

// Calls body(begin, end) on contiguous chunks of [0, count) from up to `threads` threads, and returns when all are
// done. The first exception that a chunk throws is thrown again here. No chunk is smaller than `grain`, below which a
// thread does not pay.
template <class Body>
void parallel_for(int64_t count, int64_t threads, int64_t grain, Body body) {
    const int64_t chunks = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, std::max<int64_t>(threads, 1));
    if (chunks == 1) {
        if (count > 0) body(int64_t{0}, count);
        return;
    }
    std::vector<std::exception_ptr> errors(chunks);
    auto run = [&](int64_t chunk) {
        try {
            body(count * chunk / chunks, count * (chunk + 1) / chunks);
        } catch (...) {
            errors[chunk] = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    pool.reserve(chunks - 1);
    try {
        for (int64_t chunk = 1; chunk < chunks; ++chunk) pool.emplace_back(run, chunk);
    } catch (const std::system_error&) {
        // The system has no more threads: the chunks without one run here.
    }
    run(0);
    for (int64_t chunk = static_cast<int64_t>(pool.size()) + 1; chunk < chunks; ++chunk) run(chunk);
    for (auto& thread : pool) thread.join();
    for (const auto& error : errors) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace bgpt
