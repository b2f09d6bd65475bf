#include "cpu_states/traces.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "common/threads.h"
#include "cpu_states/machine.h"
#include "cpu_states/philox_stream.h"

namespace bgpt::cpu_states {
namespace {

constexpr int64_t kGrain = 64;  // traces worth a thread

bool is_valid(const uint8_t* trace, int64_t size, int32_t num_registers, int32_t memory_size,
              std::vector<uint8_t>& states) {
    if (size < memory_size) return false;
    const ProgramCheck check = check_program(trace, memory_size, num_registers, memory_size);
    if (check.fault != Fault::none) return false;
    if (size != trace_size(num_registers, memory_size, check.instructions)) return false;
    const uint8_t* const recorded = trace + memory_size;
    uint8_t values[kMaxRegisters + 1];
    values[0] = recorded[1];
    std::memcpy(values + 1, recorded + kStateHeader, num_registers);
    states.resize(size - memory_size);
    run(trace, memory_size, num_registers, values, states.data());
    return std::memcmp(states.data(), recorded, states.size()) == 0;
}

}  // namespace

int64_t find_invalid(const uint8_t* data, const int64_t* offsets, int64_t count, int32_t num_registers,
                     int32_t memory_size, int64_t threads) {
    std::atomic<int64_t> invalid{count};
    parallel_for(count, threads, kGrain, [&](int64_t begin, int64_t end) {
        std::vector<uint8_t> states;
        for (int64_t i = begin; i < end; ++i) {
            if (is_valid(data + offsets[i], offsets[i + 1] - offsets[i], num_registers, memory_size, states)) continue;
            int64_t first = invalid.load();
            while (i < first && !invalid.compare_exchange_weak(first, i)) {
            }
            return;
        }
    });
    return invalid == count ? -1 : invalid.load();
}

void hash_programs(const uint8_t* data, const int64_t* offsets, int64_t count, int32_t num_registers,
                   int32_t memory_size, uint64_t* hashes, int64_t threads) {
    parallel_for(count, threads, kGrain, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const uint8_t* const memory = data + offsets[i];
            hashes[i] =
                program_hash(memory, check_program(memory, memory_size, num_registers, memory_size).instructions);
        }
    });
}

}  // namespace bgpt::cpu_states
