#include "cpu_states/mersenne_twister.h"

#include <algorithm>

#include "common/clones.h"

namespace bgpt::cpu_states {
namespace {

constexpr int kWords = MersenneTwister::kWords;
constexpr int kShift = 397;

inline uint32_t twist(uint32_t high, uint32_t low, uint32_t far) {
    const uint32_t y = (high & 0x80000000U) | (low & 0x7fffffffU);
    return far ^ (y >> 1) ^ (-(y & 1U) & 0x9908b0dfU);
}

BGPT_CLONES void next_block(uint32_t* state, uint32_t* tempered) {
    for (int i = 0; i < kWords - kShift; ++i) state[i] = twist(state[i], state[i + 1], state[i + kShift]);
    // A word depends on the one 227 before it: far enough apart for any vector.
#pragma GCC ivdep
    for (int i = kWords - kShift; i < kWords - 1; ++i) {
        state[i] = twist(state[i], state[i + 1], state[i + kShift - kWords]);
    }
    state[kWords - 1] = twist(state[kWords - 1], state[0], state[kShift - 1]);
    for (int i = 0; i < kWords; ++i) {
        uint32_t y = state[i];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680U;
        y ^= (y << 15) & 0xefc60000U;
        tempered[i] = y ^ (y >> 18);
    }
}

}  // namespace

MersenneTwister::MersenneTwister(std::span<const uint32_t> key) {
    const auto mix = [this](int i) { return state_[i - 1] ^ (state_[i - 1] >> 30); };
    state_[0] = 19650218U;
    for (int i = 1; i < kWords; ++i) state_[i] = 1812433253U * mix(i) + static_cast<uint32_t>(i);
    // init_by_array of the reference implementation.
    int i = 1;
    const auto advance = [&] {
        if (++i == kWords) {
            state_[0] = state_[kWords - 1];
            i = 1;
        }
    };
    const size_t rounds = std::max<size_t>(kWords, key.size());
    for (size_t k = 0; k < rounds; ++k) {
        const size_t j = k % key.size();
        state_[i] = (state_[i] ^ (mix(i) * 1664525U)) + key[j] + static_cast<uint32_t>(j);
        advance();
    }
    for (int k = 0; k < kWords - 1; ++k) {
        state_[i] = (state_[i] ^ (mix(i) * 1566083941U)) - static_cast<uint32_t>(i);
        advance();
    }
    state_[0] = 0x80000000U;
}

void MersenneTwister::refill() {
    next_block(state_.data(), tempered_.data());
    position_ = 0;
}

}  // namespace bgpt::cpu_states
