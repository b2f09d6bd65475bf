// bf16 held in uint16_t: exact to float, and float rounded to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace bgpt {

inline float to_float(float x) { return x; }
inline float to_float(uint16_t bf16) { return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16); }

inline void store(float x, float* out) { *out = x; }
inline void store(float x, uint16_t* out) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    *out = is_nan ? uint16_t{0x7fc0} : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace bgpt
