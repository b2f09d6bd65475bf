// A parallel loop on short-lived threads: no pool, so that nothing spins on a busy core and fork() stays safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace bgpt {

// Calls body(begin, end) on contiguous pieces of [0, count) from up to `threads` threads, and returns when all are
// done. The first exception a piece throws is thrown again here. `least` is the smallest piece worth a thread of its
// own.
template <class Body>
void parallel_for(int64_t count, int64_t threads, int64_t least, Body body) {
    const int64_t pieces = std::clamp<int64_t>(count / std::max<int64_t>(least, 1), 1, std::max<int64_t>(threads, 1));
    if (pieces == 1) {
        if (count > 0) body(int64_t{0}, count);
        return;
    }
    std::vector<std::exception_ptr> errors(pieces);
    auto run = [&](int64_t piece) {
        try {
            body(count * piece / pieces, count * (piece + 1) / pieces);
        } catch (...) {
            errors[piece] = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    pool.reserve(pieces - 1);
    try {
        for (int64_t piece = 1; piece < pieces; ++piece) pool.emplace_back(run, piece);
    } catch (const std::system_error&) {
        // No more threads are to be had: the pieces that have none are done here.
    }
    run(0);
    for (int64_t piece = static_cast<int64_t>(pool.size()) + 1; piece < pieces; ++piece) run(piece);
    for (auto& thread : pool) thread.join();
    for (const auto& error : errors) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace bgpt
