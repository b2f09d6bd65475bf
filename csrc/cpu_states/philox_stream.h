// The Philox stream of instances, for bulk data: the released distribution of programs from a counter-based generator,
// so that instance i of a seed is the same whatever thread, process or GPU generates it, and in whatever order.
//
// Blocks of four words, philox(seed, index, block): block 0, word 0 is the program's length, word 1 decides
// whether its values are small; blocks 1…16 hold the start
// values of ACC and the registers, a byte each; block 17 + j holds instructions 2j and 2j + 1, two words each.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "cpu_states/machine.h"

namespace bgpt::cpu_states {

constexpr uint32_t kValueBlock = 1;
constexpr uint32_t kProgramBlock = kValueBlock + (kMaxRegisters + 1) / 16;

BGPT_HOST_DEVICE inline Words philox(uint64_t seed, uint64_t index, uint32_t block) {
    return bgpt::philox(seed, {{block, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0}});
}

// A word as a binary fraction of 1: each draw uses up the bits of its own choice. The number of outcomes drawn from one
// word is under 2^16 here, so that no outcome's probability is wrong by more than a factor of 1 + 2^-16.
struct Fraction {
    uint32_t bits;

    BGPT_HOST_DEVICE int32_t below(int32_t n) {
        const uint64_t product = static_cast<uint64_t>(bits) * static_cast<uint32_t>(n);
        bits = static_cast<uint32_t>(product);
        return static_cast<int32_t>(product >> 32);
    }
};

// Instructions of instance `index`, its HLT included.
BGPT_HOST_DEVICE inline int32_t draw_length(const Options& options, uint64_t seed, uint64_t index) {
    Fraction fraction{philox(seed, index, 0).at[0]};
    const int32_t length = options.min_program + fraction.below(options.max_program - options.min_program + 1);
    return length > 1 ? length : 1;
}

// What is left of the start values and immediates of instance `index`: all eight bits, or the lowest four.
BGPT_HOST_DEVICE inline uint8_t value_mask(const Options& options, uint64_t seed, uint64_t index) {
    const bool is_small = options.small_values > 0 && philox(seed, index, 0).at[1] < options.small_values;
    return is_small ? 15 : 255;
}

BGPT_HOST_DEVICE inline void draw_instruction(uint32_t first, uint32_t second, int32_t num_registers, uint8_t mask,
                                              uint8_t* out) {
    Fraction f{first}, g{second};
    const int32_t op = 1 + f.below(kOpcodes - 1);
    out[0] = static_cast<uint8_t>(op);
    if (op == LOADI) {
        out[1] = static_cast<uint8_t>(g.below(256)) & mask;
        return;
    }
    const int32_t operands = min_operands(op) + f.below(max_operands(op) - min_operands(op) + 1);
    if (operands >= 1) out[1] = static_cast<uint8_t>(1 + g.below(num_registers));
    if (operands >= 2) out[2] = static_cast<uint8_t>(1 + g.below(num_registers));
    if (operands >= 3) out[3] = static_cast<uint8_t>(1 + f.below(num_registers));
}

// Writes `length` instructions, the last one HLT, at `program`, whose 4·length bytes are zero.
BGPT_HOST_DEVICE inline void draw_program(const Options& options, uint64_t seed, uint64_t index, int32_t length,
                                          uint8_t* program) {
    const uint8_t mask = value_mask(options, seed, index);
    for (int32_t i = 0; i + 1 < length; i += 2) {
        const Words words = philox(seed, index, kProgramBlock + static_cast<uint32_t>(i / 2));
        draw_instruction(words.at[0], words.at[1], options.num_registers, mask, program + kInstruction * i);
        if (i + 2 < length) {
            draw_instruction(words.at[2], words.at[3], options.num_registers, mask, program + kInstruction * (i + 1));
        }
    }
}

// Writes instance `index` at `out`: trace_size(…, draw_length(…)) bytes.
BGPT_HOST_DEVICE inline void write_instance(const Options& options, uint64_t seed, uint64_t index, uint8_t* out) {
    memset(out, 0, static_cast<size_t>(options.memory_size));
    draw_program(options, seed, index, draw_length(options, seed, index), out);
    const uint8_t mask = value_mask(options, seed, index);
    uint8_t values[kMaxRegisters + 1] = {};
    for (int32_t i = 0; i <= options.num_registers; i += 16) {
        const Words words = philox(seed, index, kValueBlock + static_cast<uint32_t>(i / 16));
        for (int32_t j = 0; j < 16; ++j) values[i + j] = static_cast<uint8_t>(words.at[j / 4] >> (j % 4 * 8)) & mask;
    }
    run(out, options.memory_size, options.num_registers, values, out + options.memory_size);
}

// A hash of a program's instructions up to its first HLT: it decides the program's split, whatever the start state.
BGPT_HOST_DEVICE inline uint64_t program_hash(const uint8_t* program, int64_t instructions) {
    uint64_t hash = 0xCBF29CE484222325U;
    for (int64_t i = 0; i < instructions; ++i) {
        const uint8_t* const at = program + kInstruction * i;
        const uint32_t word = at[0] | at[1] << 8 | at[2] << 16 | static_cast<uint32_t>(at[3]) << 24;
        hash = (hash ^ word) * 0x9E3779B97F4A7C15U;
        hash ^= hash >> 32;
    }
    // The finaliser of MurmurHash3.
    hash = (hash ^ (hash >> 33)) * 0xFF51AFD7ED558CCDU;
    hash = (hash ^ (hash >> 33)) * 0xC4CEB9FE1A85EC53U;
    return hash ^ (hash >> 33);
}

// One program in 64 is for evaluation.
BGPT_HOST_DEVICE constexpr bool is_eval(uint64_t hash) { return hash >> 58 == 0; }

enum class Split : int32_t { all, train, eval };

// Selects the first `count` instances of `split` at or after `start`: their indices [count] and the offsets of their
// traces [count + 1], the first 0. Returns the index after the last one examined. Throws std::domain_error where fewer
// than one of 65,536 programs belongs to the split. The result does not depend on `threads`.
int64_t select(const Options& options, uint64_t seed, int64_t start, int64_t count, Split split, int64_t threads,
               int64_t* indices, int64_t* offsets);

// Writes the traces of selected instances at out + offsets[i].
void write_selected(const Options& options, uint64_t seed, const int64_t* indices, const int64_t* offsets,
                    int64_t count, uint8_t* out, int64_t threads);

// sizes[i] = bytes of instance start + i. Device memory; throws std::runtime_error when the launch fails.
void sizes_cuda(const Options& options, uint64_t seed, int64_t start, int64_t count, int64_t* sizes, void* stream);

// Writes instances start … start + count − 1 at out + offsets[i], and whether each belongs to the evaluation split.
// An instance that would end past `capacity` is skipped.
void write_cuda(const Options& options, uint64_t seed, int64_t start, int64_t count, const int64_t* offsets,
                uint8_t* out, int64_t capacity, bool* in_eval, void* stream);

}  // namespace bgpt::cpu_states
