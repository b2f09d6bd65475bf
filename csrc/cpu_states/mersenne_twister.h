// The part of CPython's random.Random that the released generator uses: MT19937 (Matsumoto and Nishimura, 1998) seeded
// as random.seed(int) does, getrandbits and _randbelow_with_getrandbits (CPython Lib/random.py,
// Modules/_randommodule.c).
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>

#include "common/clones.h"

namespace bgpt::cpu_states {

class MersenneTwister {
  public:
    static constexpr int kWords = 624;

    // As random.seed(n): `key` is |n| in 32-bit words, the least significant first; one word of 0 for n = 0.
    explicit MersenneTwister(std::span<const uint32_t> key);

    // The next words, as many as are computed (at least one); use() advances past those that the caller used.
    std::span<const uint32_t> ready() {
        if (position_ == kWords) refill();
        return {tempered_.data() + position_, tempered_.data() + kWords};
    }
    void use(int words) { position_ += words; }

    // 1 ≤ bits ≤ 32.
    uint32_t getrandbits(int bits) {
        const uint32_t word = ready().front();
        use(1);
        return word >> (32 - bits);
    }

    // Uniform in [0, n), 1 ≤ n < 2^32: the index of random.choice, and randint(a, b) − a for n = b − a + 1.
    uint32_t below(uint32_t n) {
        const int bits = std::bit_width(n);
        uint32_t value = getrandbits(bits);
        while (value >= n) value = getrandbits(bits);
        return value;
    }

  private:
    void refill();

    std::array<uint32_t, kWords> state_;
    std::array<uint32_t, kWords> tempered_;
    int position_ = kWords;
};

}  // namespace bgpt::cpu_states
