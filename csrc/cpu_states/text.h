// Programs as assembly text.
#pragma once

#include <cstdint>
#include <string>

namespace bgpt::cpu_states {

// "HLT", "CLR", … in the order of their encoding.
const char* mnemonic(int32_t op);

// Register 1 is "A"; after "Z" the names go on in Unicode, as the released ones do. UTF-8.
std::string register_name(int32_t index);

// The lines of `instructions` instructions that have passed check_instruction, with `separator` between them.
std::string disassemble(const uint8_t* program, int64_t instructions, const std::string& separator);

}  // namespace bgpt::cpu_states
