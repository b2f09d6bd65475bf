// The toy machine of the CPU-states task (arXiv 2402.19155; semantics of the released cpu-simulation.py): its
// instruction set, the check whether bytes are a program, and its step(). Compiles for the host and as device code.
//
// Letters: M bytes of memory, R registers, N executed instructions, C = 6 + R bytes a state.
// A trace is M + (N + 1)·C bytes: the memory, the start state, and one state an executed instruction.
// A state is PC ACC IR0 IR1 IR2 IR3 and the registers A, B, …
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace bgpt::cpu_states {

// In the order of their encoding.
enum Opcode : uint8_t {
    HLT,
    CLR,
    INC,
    DEC,
    SHL,
    SHR,
    ROL,
    ROR,
    NOT,
    PUSH,
    POP,
    LOADI,
    SWAP,
    ADD,
    SUB,
    MUL,
    DIV,
    AND,
    OR,
    XOR,
    MOV
};
constexpr int32_t kOpcodes = 21;
constexpr int32_t kInstruction = 4;     // bytes
constexpr int32_t kStateHeader = 6;     // PC, ACC, IR
constexpr int32_t kMaxRegisters = 255;  // an operand is one byte, and 0 is "absent"
constexpr int32_t kMaxPc = 255;         // PC is one byte of a state

BGPT_HOST_DEVICE constexpr int32_t min_operands(int32_t op) { return op <= NOT ? 0 : op == MOV ? 2 : 1; }

BGPT_HOST_DEVICE constexpr int32_t max_operands(int32_t op) {
    return op == HLT ? 0 : op <= LOADI ? 1 : op == SWAP || op == MOV ? 2 : 3;
}

BGPT_HOST_DEVICE constexpr int32_t state_size(int32_t num_registers) { return kStateHeader + num_registers; }

BGPT_HOST_DEVICE constexpr int64_t trace_size(int32_t num_registers, int32_t memory_size, int64_t instructions) {
    return memory_size + (instructions + 1) * state_size(num_registers);
}

// What to generate. Callers ensure 1 ≤ num_registers ≤ 255, 0 ≤ min_program ≤ max_program and
// 4·max(max_program, 1) ≤ memory_size.
struct Options {
    int32_t num_registers;
    int32_t memory_size;
    int32_t min_program;
    int32_t max_program;
    int64_t small_values;  // of 2^32 programs of the Philox stream, how many have start values and immediates of 0…15

    BGPT_HOST_DEVICE int64_t max_trace_size() const {
        return trace_size(num_registers, memory_size, max_program > 1 ? max_program : 1);
    }
};

enum class Fault : int32_t { none, opcode, operand_missing, operand_surplus, register_range, pc_range, no_halt };

// Whether the machine can execute the instruction `ir`. An operand that is absent is 0, and so are those after it.
BGPT_HOST_DEVICE inline Fault check_instruction(const uint8_t* ir, int32_t num_registers) {
    const int32_t op = ir[0];
    if (op >= kOpcodes) return Fault::opcode;
    if (op == LOADI) return ir[2] || ir[3] ? Fault::operand_surplus : Fault::none;
    const int32_t operands = ir[3] ? 3 : ir[2] ? 2 : ir[1] ? 1 : 0;
    if (operands > max_operands(op)) return Fault::operand_surplus;
    if (operands < min_operands(op)) return Fault::operand_missing;
    for (int32_t i = 1; i <= operands; ++i) {
        if (ir[i] == 0) return Fault::operand_missing;
        if (ir[i] > num_registers) return Fault::register_range;
    }
    return Fault::none;
}

// The instructions of a program up to its first HLT, which counts; or what is wrong with instruction `instructions`.
// `program` has `size` bytes, and runs in a memory of `memory_size`, which are at least as many.
struct ProgramCheck {
    int64_t instructions;
    Fault fault;
};

BGPT_HOST_DEVICE inline ProgramCheck check_program(const uint8_t* program, int64_t size, int32_t num_registers,
                                                   int64_t memory_size) {
    int64_t i = 0;
    for (; (i + 1) * kInstruction <= size; ++i) {
        // Fetching instruction i moves PC to i + 1, unless that is past the memory.
        if (i + 1 > kMaxPc && memory_size / kInstruction - 1 > kMaxPc) return {i, Fault::pc_range};
        const Fault fault = check_instruction(program + i * kInstruction, num_registers);
        if (fault != Fault::none) return {i, fault};
        if (program[i * kInstruction] == HLT) return {i + 1, Fault::none};
    }
    return {i, Fault::no_halt};
}

// Writes one state; `values` is ACC followed by the registers.
BGPT_HOST_DEVICE inline void save_state(int32_t pc, const uint8_t* ir, const uint8_t* values, int32_t num_registers,
                                        uint8_t* state) {
    state[0] = static_cast<uint8_t>(pc);
    state[1] = values[0];
    memcpy(state + 2, ir, kInstruction);
    // The default machine's copy has a size that the compiler knows: two moves in place of a call.
    if (num_registers == 10) {
        memcpy(state + kStateHeader, values + 1, 10);
    } else {
        memcpy(state + kStateHeader, values + 1, static_cast<size_t>(num_registers));
    }
}

// One step: fetch the instruction at `pc`, move `pc` on (never past the memory's last instruction), save the state,
// execute. `values` is ACC followed by the registers, so that operand 0, "absent", is ACC. The instruction must have
// passed check_instruction. Returns false at HLT.
BGPT_HOST_DEVICE inline bool step(const uint8_t* memory, int32_t memory_size, int32_t num_registers, int32_t& pc,
                                  uint8_t* values, uint8_t* state) {
    const uint8_t* const ir = memory + static_cast<int64_t>(kInstruction) * pc;
    const int32_t last = memory_size / kInstruction - 1;
    pc = pc < last ? pc + 1 : last;
    save_state(pc, ir, values, num_registers, state);

    // One operand: ACC ∘ A → ACC. Two: A ∘ B → A. Three: A ∘ B → C.
    // An immediate names no value.
    const int32_t first = ir[0] == LOADI ? 0 : ir[1];
    const int32_t left = ir[2] ? first : 0;
    const int32_t right = ir[2] ? ir[2] : first;
    const int32_t into = ir[3] ? ir[3] : left;
    const int32_t x = values[left];
    const int32_t y = values[right];
    const auto set = [values](int32_t index, int32_t value) {
        values[index] = static_cast<uint8_t>(value);
        return true;
    };
    switch (ir[0]) {
        case HLT:
            return false;
        case CLR:
            return set(right, 0);
        case INC:
            return set(right, y < 255 ? y + 1 : 255);
        case DEC:
            return set(right, y > 0 ? y - 1 : 0);
        case SHL:
            return set(right, y << 1);
        case SHR:
            return set(right, y >> 1);
        case ROL:
            return set(right, y << 1 | y >> 7);
        case ROR:
            return set(right, y >> 1 | y << 7);
        case NOT:
            return set(right, ~y);
        case PUSH:
            return set(0, y);
        case POP:
            return set(right, x);
        case LOADI:
            return set(0, ir[1]);
        case SWAP:
            return set(left, y) && set(right, x);
        case ADD:
            return set(into, x + y < 255 ? x + y : 255);
        case SUB:
            return set(into, x > y ? x - y : 0);
        case MUL:
            return set(into, x * y < 255 ? x * y : 255);
        case DIV:
            return set(into, y ? x / y : 255);
        case AND:
            return set(into, x & y);
        case OR:
            return set(into, x | y);
        case XOR:
            return set(into, x ^ y);
        default:  // MOV
            return set(left, y);
    }
}

// Runs the program in `memory` from PC 0 to its HLT and writes the start state and one state an executed instruction;
// returns the bytes written. The program must have passed check_program; `values` (R + 1 bytes) ends as the last state.
BGPT_HOST_DEVICE inline int64_t run(const uint8_t* memory, int32_t memory_size, int32_t num_registers, uint8_t* values,
                                    uint8_t* states) {
    const uint8_t nothing_fetched[kInstruction] = {0, 0, 0, 0};
    save_state(0, nothing_fetched, values, num_registers, states);
    uint8_t* state = states + state_size(num_registers);
    int32_t pc = 0;
    while (step(memory, memory_size, num_registers, pc, values, state)) state += state_size(num_registers);
    return state + state_size(num_registers) - states;
}

}  // namespace bgpt::cpu_states
