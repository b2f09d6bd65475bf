// Runs the toy machine, its checks and its generators on random input in buffers of exactly the right size, and
// compares with the simplest code; run by tests/csrc/test_sanitizers.py under the sanitizers. Arguments:
// "check", programs, seed, and "overrun" to pass a buffer one byte short; or "twister", how many draws, and the seed's
// 32-bit words.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu_states/machine.h"
#include "cpu_states/philox_stream.h"
#include "cpu_states/python_stream.h"
#include "cpu_states/text.h"
#include "cpu_states/traces.h"

namespace {

using namespace bgpt::cpu_states;
using Bytes = std::vector<uint8_t>;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::exit(1);
}

void expect(bool holds, const char* what) {
    if (!holds) fail(what);
}

constexpr int kMinOperands[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2};
constexpr int kMaxOperands[] = {0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 2};

// Whether an instruction is valid, by counting its operands.
bool plain_check(const uint8_t* ir, int R) {
    if (ir[0] > 20) return false;
    if (ir[0] == 11) return ir[2] == 0 && ir[3] == 0;
    int operands = 0;
    while (operands < 3 && ir[1 + operands] != 0) ++operands;
    for (int i = operands; i < 3; ++i) {
        if (ir[1 + i] != 0) return false;
    }
    for (int i = 0; i < operands; ++i) {
        if (ir[1 + i] > R) return false;
    }
    return operands >= kMinOperands[ir[0]] && operands <= kMaxOperands[ir[0]];
}

int plain_result(int op, int x, int y) {
    switch (op) {
        case 13:
            return std::min(x + y, 255);
        case 14:
            return std::max(x - y, 0);
        case 15:
            return std::min(x * y, 255);
        case 16:
            return y == 0 ? 255 : x / y;
        case 17:
            return x & y;
        case 18:
            return x | y;
        case 19:
            return x ^ y;
        default:
            return y;  // MOV
    }
}

int plain_unary(int op, int x) {
    const int results[] = {0,     std::min(x + 1, 255),  std::max(x - 1, 0),  2 * x % 256,
                           x / 2, 2 * x % 256 + x / 128, x / 2 + x % 2 * 128, 255 - x};
    return results[op - 1];
}

// The states of a checked program, from ints that cannot overflow.
Bytes plain_run(const Bytes& memory, int R, std::vector<int> values) {
    Bytes states{0, static_cast<uint8_t>(values[0]), 0, 0, 0, 0};
    for (int i = 1; i <= R; ++i) states.push_back(static_cast<uint8_t>(values[i]));
    for (int at = 0;; ++at) {
        const uint8_t* const ir = memory.data() + 4 * at;
        const int pc = std::min(at + 1, static_cast<int>(memory.size()) / 4 - 1);
        states.push_back(static_cast<uint8_t>(pc));
        states.push_back(static_cast<uint8_t>(values[0]));
        states.insert(states.end(), ir, ir + 4);
        for (int i = 1; i <= R; ++i) states.push_back(static_cast<uint8_t>(values[i]));
        const int op = ir[0], a = ir[1], b = ir[2], c = ir[3];
        if (op == 0) return states;
        if (op <= 8) {
            values[a] = plain_unary(op, values[a]);
        } else if (op == 9) {
            values[0] = values[a];
        } else if (op == 10) {
            values[a] = values[0];
        } else if (op == 11) {
            values[0] = a;
        } else if (op == 12) {
            std::swap(values[b == 0 ? 0 : a], values[b == 0 ? a : b]);
        } else if (b == 0) {
            values[0] = plain_result(op, values[0], values[a]);
        } else {
            values[c == 0 ? a : c] = plain_result(op, values[a], values[b]);
        }
    }
}

// A random memory: instructions of every form, with some random bytes.
Bytes random_memory(std::mt19937& draw, int R) {
    Bytes memory(4 + draw() % 80);
    for (size_t i = 0; i + 4 <= memory.size(); i += 4) {
        const int op = draw() % 8 == 0 ? 0 : static_cast<int>(draw() % 21);
        const int operands = kMinOperands[op] + static_cast<int>(draw() % (kMaxOperands[op] - kMinOperands[op] + 1));
        memory[i] = static_cast<uint8_t>(op);
        for (int j = 1; j <= operands; ++j) {
            memory[i + j] = static_cast<uint8_t>(op == LOADI ? draw() : 1 + draw() % R);
        }
        if (draw() % 24 == 0) memory[i + draw() % 4] = static_cast<uint8_t>(draw() % 3 ? draw() % (R + 2) : draw());
    }
    return memory;
}

// Returns whether the memory held a program.
bool check_machine(std::mt19937& draw, bool overrun) {
    const int R = draw() % 8 == 0 ? 1 + static_cast<int>(draw() % 255) : 1 + static_cast<int>(draw() % 12);
    const Bytes memory = random_memory(draw, R);
    const int M = static_cast<int>(memory.size());
    int64_t i = 0;
    bool is_valid = true, halted = false;
    for (; !halted && (i + 1) * 4 <= M; ++i) {
        is_valid = plain_check(memory.data() + 4 * i, R);
        if (!is_valid) break;
        halted = memory[4 * i] == 0;
    }
    const ProgramCheck check = check_program(memory.data(), M, R, M);
    expect(check.instructions == i, "check_program: place");
    expect((check.fault == Fault::none) == (is_valid && halted), "check_program: verdict");
    expect((check.fault == Fault::no_halt) == (is_valid && !halted), "check_program: no HLT");
    if (check.fault != Fault::none) return false;

    Bytes values(R + 1);
    for (auto& value : values) value = static_cast<uint8_t>(draw() % 3 ? draw() : draw() % 2 * 255);
    const Bytes expected = plain_run(memory, R, {values.begin(), values.end()});
    // Allocated at its final size: the sanitizer does not see overruns into a vector's spare capacity.
    Bytes trace(trace_size(R, M, check.instructions) - (overrun ? 1 : 0));
    std::copy(memory.begin(), memory.end(), trace.begin());
    Bytes used(values);
    const int64_t bytes_written = run(trace.data(), M, R, used.data(), trace.data() + M);
    expect(bytes_written == static_cast<int64_t>(expected.size()), "run: size");
    expect(std::memcmp(trace.data() + M, expected.data(), expected.size()) == 0, "run: states");

    const std::string text = disassemble(memory.data(), check.instructions, "\n");
    expect(std::count(text.begin(), text.end(), '\n') + 1 == check.instructions, "disassemble: lines");
    int64_t offsets[2] = {0, static_cast<int64_t>(trace.size())};
    expect(find_invalid(trace.data(), offsets, 1, R, M, 1) == -1, "find_invalid: a valid trace");
    uint64_t hash;
    hash_programs(trace.data(), offsets, 1, R, M, &hash, 1);
    expect(hash == program_hash(memory.data(), check.instructions), "hash_programs");
    trace[M + draw() % (trace.size() - M)] ^= 1 << draw() % 8;
    // Where the changed byte is a start value, the trace differs from the run of that start value.
    expect(find_invalid(trace.data(), offsets, 1, R, M, 1) == 0, "find_invalid: a bad state");
    offsets[1] -= 1 + static_cast<int64_t>(draw() % trace.size());
    expect(find_invalid(trace.data(), offsets, 1, R, M, 1) == 0, "find_invalid: a short trace");
    return true;
}

void check_streams(std::mt19937& draw) {
    const int slots = 1 + static_cast<int>(draw() % 40);
    const int max_program = static_cast<int>(draw() % (slots + 1));
    const Options options{1 + static_cast<int32_t>(draw() % (draw() % 4 ? 12 : 255)),
                          4 * slots + static_cast<int>(draw() % 4), static_cast<int>(draw() % (max_program + 1)),
                          max_program, draw() % 2 ? int64_t{1} << 31 : 0};
    // Sometimes enough for several threads.
    const int64_t count = draw() % (draw() % 10 ? 20 : 500);
    const std::vector<uint32_t> key{static_cast<uint32_t>(draw()), static_cast<uint32_t>(draw())};
    std::vector<int64_t> offsets(count + 1);
    Bytes data(count * options.max_trace_size());
    PythonStream stream(key, options);
    stream.skip(draw() % 3);
    expect(stream.fill(data.data(), static_cast<int64_t>(data.size()), offsets.data(), count) == count, "fill");
    expect(find_invalid(data.data(), offsets.data(), count, options.num_registers, options.memory_size, 3) == -1,
           "Python stream: traces");

    const uint64_t seed = draw();
    const int64_t start = static_cast<int64_t>(draw()) << draw() % 30;
    std::vector<int64_t> indices(count);
    const int64_t next =
        select(options, seed, start, count, Split::all, 1 + draw() % 3, indices.data(), offsets.data());
    expect(next == start + count, "select: next");
    Bytes exact(offsets.back());
    write_selected(options, seed, indices.data(), offsets.data(), count, exact.data(), 1 + draw() % 3);
    expect(find_invalid(exact.data(), offsets.data(), count, options.num_registers, options.memory_size, 3) == -1,
           "Philox stream: traces");
}

// Every operation in each of its forms, on every value of one operand and some of the other, 0, 1, 127, 128, 254, 255
// among them.
void check_values() {
    Bytes state(state_size(3));
    for (int op = CLR; op <= MOV; ++op) {
        for (int form = min_operands(op); form <= max_operands(op); ++form) {
            if (op == LOADI) continue;
            for (int x = 0; x < 256; x += x % 127 == 0 ? 1 : 7) {
                for (int y = 0; y < 256; ++y) {
                    Bytes memory(8);
                    memory[0] = static_cast<uint8_t>(op);
                    for (int i = 1; i <= form; ++i) memory[i] = static_cast<uint8_t>(i);
                    Bytes values{static_cast<uint8_t>(form < 2 ? x : 77), static_cast<uint8_t>(form < 2 ? y : x),
                                 static_cast<uint8_t>(y), 99};
                    const Bytes expected = plain_run(memory, 3, {values.begin(), values.end()});
                    int32_t pc = 0;
                    expect(step(memory.data(), 8, 3, pc, values.data(), state.data()), "step: runs on");
                    expect(!step(memory.data(), 8, 3, pc, values.data(), state.data()), "step: halts");
                    expect(std::memcmp(state.data(), expected.data() + 18, 9) == 0, "step: values");
                }
            }
        }
    }
}

int twister(int64_t draws, const std::vector<uint32_t>& key) {
    MersenneTwister random(key);
    for (int64_t i = 0; i < draws; ++i) {
        const int bits = 1 + static_cast<int>(i % 32);
        std::printf("%u\n", random.getrandbits(bits));
        std::printf("%u\n", random.below(1 + static_cast<uint32_t>(i * i)));
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string mode = argc > 2 ? argv[1] : "";
    const int64_t count = argc > 2 ? std::atoll(argv[2]) : 0;
    if (mode == "twister") {
        std::vector<uint32_t> key;
        for (int i = 3; i < argc; ++i) key.push_back(static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10)));
        return twister(count, key);
    }
    if (mode != "check" || argc < 4) fail("check PROGRAMS SEED [overrun], or twister DRAWS WORD...");
    std::mt19937 draw(static_cast<uint32_t>(std::atoll(argv[3])));
    const bool overrun = argc > 4 && std::string(argv[4]) == "overrun";
    check_values();
    int64_t programs = 0;
    for (int64_t i = 0; i < count; ++i) {
        programs += check_machine(draw, overrun);
        if (i % 50 == 0) check_streams(draw);
    }
    std::printf("%lld memories\n", static_cast<long long>(count));
    expect(count < 1000 || (programs > count / 5 && programs < count / 5 * 4), "too few valid or invalid memories");
    return 0;
}
