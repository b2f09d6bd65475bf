// Many traces end to end: trace i is data[offsets[i] … offsets[i + 1]).
#pragma once

#include <cstdint>

namespace bgpt::cpu_states {

// The first trace that differs from what the machine writes for the trace's memory and start state, or −1. The start
// state has PC 0 and IR 0.
int64_t find_invalid(const uint8_t* data, const int64_t* offsets, int64_t count, int32_t num_registers,
                     int32_t memory_size, int64_t threads);

// hashes[i] = program_hash of trace i; its memory must hold a checked program.
void hash_programs(const uint8_t* data, const int64_t* offsets, int64_t count, int32_t num_registers,
                   int32_t memory_size, uint64_t* hashes, int64_t threads);

}  // namespace bgpt::cpu_states
