#include "cpu_states/text.h"

#include "cpu_states/machine.h"

namespace bgpt::cpu_states {

const char* mnemonic(int32_t op) {
    static constexpr const char* kNames[kOpcodes] = {"HLT", "CLR", "INC",  "DEC", "SHL",   "SHR",  "ROL",
                                                     "ROR", "NOT", "PUSH", "POP", "LOADI", "SWAP", "ADD",
                                                     "SUB", "MUL", "DIV",  "AND", "OR",    "XOR",  "MOV"};
    return kNames[op];
}

std::string register_name(int32_t index) {
    const int32_t code = 'A' + index - 1;
    if (code < 0x80) return {static_cast<char>(code)};
    return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

std::string disassemble(const uint8_t* program, int64_t instructions, const std::string& separator) {
    std::string text;
    for (int64_t i = 0; i < instructions; ++i) {
        const uint8_t* const ir = program + kInstruction * i;
        if (i > 0) text += separator;
        text += mnemonic(ir[0]);
        if (ir[0] == LOADI) {
            text += ' ';
            text += std::to_string(ir[1]);
            continue;
        }
        for (int j = 1; j < kInstruction && ir[j] != 0; ++j) {
            text += ' ';
            text += register_name(ir[j]);
        }
    }
    return text;
}

}  // namespace bgpt::cpu_states
