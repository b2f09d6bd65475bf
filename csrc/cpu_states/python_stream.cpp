#include "cpu_states/python_stream.h"

#include <algorithm>
#include <bit>

namespace bgpt::cpu_states {
namespace {

// The choices that an instruction is made of, one automaton state each.
enum State {
    kOpcode,
    kImmediate,
    kCount,                  // the number of operands: one state for each range that an opcode may have, as range()
    kRegister = kCount + 5,  // operand 1 with 1, 2 or 3 to come, operand 2 with 1 or 2, operand 3
    kStates = kRegister + 6
};

struct Range {
    int first, last;
};
constexpr Range kRanges[5] = {{0, 1}, {1, 1}, {1, 2}, {1, 3}, {2, 2}};

int count_state(int op) {
    int state = 0;
    while (kRanges[state].first != min_operands(op) || kRanges[state].last != max_operands(op)) ++state;
    return kCount + state;
}

// The state that draws operand `position` (1…3) when `remaining` operands, this one included, are to be drawn.
int register_state(int position, int remaining) {
    return kRegister + (position == 1 ? remaining - 1 : position == 2 ? remaining + 2 : 5);
}

}  // namespace

ProgramDrawer::ProgramDrawer(int32_t num_registers) {
    // An immediate needs its first bit alone to be accepted or not, and the opcode 5.
    const int bits = std::max(5, static_cast<int>(std::bit_width(static_cast<uint32_t>(num_registers))));
    const int stride = 1 << bits;
    shift_ = 32 - bits;
    next_.resize(kStates * stride);
    emit_.resize(kStates * stride);

    // State `from` is choice(n); accepted(i) says what choosing i writes and where it leads.
    struct Step {
        Emit emit;
        int next;
    };
    const auto fill = [&](int from, uint32_t n, auto accepted) {
        for (int top = 0; top < stride; ++top) {
            const uint32_t chosen = static_cast<uint32_t>(top) >> (bits - std::bit_width(n));
            const Step step = chosen < n ? accepted(static_cast<int>(chosen)) : Step{{0, 0, 0}, from};
            next_[from * stride + top] = static_cast<uint16_t>(step.next * stride);
            emit_[from * stride + top] = step.emit;
        }
    };
    const auto byte = [](int value, int advance, uint8_t mask = 0) {
        return Emit{static_cast<uint8_t>(value), mask, static_cast<uint8_t>(advance)};
    };

    fill(kOpcode, kOpcodes - 1, [&](int i) {
        const int op = i + 1;
        return Step{byte(op, 1), op == LOADI ? kImmediate : count_state(op)};
    });
    // randint(0, 255) takes 9 bits and is out of range when the first is set; the byte is the 8 after it.
    fill(kImmediate, 1, [&](int) { return Step{byte(0, 3, 0xff), kOpcode}; });
    for (int state = 0; state < 5; ++state) {
        const auto [first, last] = kRanges[state];
        fill(kCount + state, last - first + 1, [&, first = first](int i) {
            const int count = first + i;
            return count == 0 ? Step{byte(0, 3), kOpcode} : Step{byte(0, 0), register_state(1, count)};
        });
    }
    for (int position = 1; position <= 3; ++position) {
        for (int remaining = 1; remaining <= 4 - position; ++remaining) {
            fill(register_state(position, remaining), num_registers, [&](int i) {
                return remaining > 1 ? Step{byte(i + 1, 1), register_state(position + 1, remaining - 1)}
                                     : Step{byte(i + 1, 4 - position), kOpcode};
            });
        }
    }
}

void ProgramDrawer::draw(MersenneTwister& random, int32_t instructions, uint8_t* out) const {
    const uint8_t* const end = out + int64_t{kInstruction} * instructions;
    const uint16_t* const next = next_.data();
    const Emit* const emit = emit_.data();
    uint32_t state = kOpcode;
    while (out < end) {
        const auto words = random.ready();
        const uint32_t* word = words.data();
        for (const uint32_t* const stop = word + words.size(); word < stop && out < end; ++word) {
            const uint32_t entry = state + (*word >> shift_);
            const Emit e = emit[entry];
            state = next[entry];
            *out = e.value | ((*word >> 23) & e.word_mask);
            out += e.advance;
        }
        random.use(static_cast<int>(word - words.data()));
    }
}

PythonStream::PythonStream(std::span<const uint32_t> key, const Options& options)
    : options_(options), random_(key), drawer_(options.num_registers), skipped_(options.memory_size) {}

void PythonStream::draw(uint8_t* values, uint8_t* memory) {
    for (int32_t i = 0; i <= options_.num_registers; ++i) values[i] = static_cast<uint8_t>(random_.below(256));
    const uint32_t lengths = static_cast<uint32_t>(options_.max_program - options_.min_program) + 1;
    const int32_t length = options_.min_program + static_cast<int32_t>(random_.below(lengths));
    std::memset(memory, 0, options_.memory_size);
    drawer_.draw(random_, length - 1, memory);
}

int64_t PythonStream::fill(uint8_t* out, int64_t capacity, int64_t* offsets, int64_t count) {
    uint8_t values[kMaxRegisters + 1];
    int64_t i = 0;
    for (; i < count && offsets[i] + options_.max_trace_size() <= capacity; ++i) {
        uint8_t* const memory = out + offsets[i];
        uint8_t* const states = memory + options_.memory_size;
        draw(values, memory);
        const int64_t size = run(memory, options_.memory_size, options_.num_registers, values, states);
        offsets[i + 1] = offsets[i] + options_.memory_size + size;
    }
    return i;
}

void PythonStream::skip(int64_t count) {
    uint8_t values[kMaxRegisters + 1];
    for (int64_t i = 0; i < count; ++i) draw(values, skipped_.data());
}

}  // namespace bgpt::cpu_states
