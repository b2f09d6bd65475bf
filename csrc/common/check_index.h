// The check of an index that Python passes.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace bgpt {

// Throws std::out_of_range, which is Python's IndexError, unless 0 <= value < limit; `reason` says what limits it.
inline void check_index(const char* name, int64_t value, int64_t limit, const char* reason = "") {
    if (value >= 0 && value < limit) return;
    throw std::out_of_range(std::string(name) + ": expected 0 to " + std::to_string(limit - 1) + reason + ", got " +
                            std::to_string(value));
}

}  // namespace bgpt
