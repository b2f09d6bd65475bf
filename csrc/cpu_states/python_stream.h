// The released generator's stream of instances (cpu-simulation.py of sanderwood/bgpt), byte for byte: one Mersenne
// Twister, drawn from in the released order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu_states/machine.h"
#include "cpu_states/mersenne_twister.h"

namespace bgpt::cpu_states {

// Draws a program's instructions from raw 32-bit words without a branch that could be mispredicted. random.choice takes
// the top bits of a word and draws again while they are out of range, which no branch predictor foresees; here every
// word, accepted or rejected, is one look-up in the table of a small automaton: the byte to write, how far the output
// moves, and the next state, which is the choice that the next word is for.
class ProgramDrawer {
  public:
    explicit ProgramDrawer(int32_t num_registers);

    // Writes `instructions` random instructions other than HLT at `out`, whose bytes are zero.
    void draw(MersenneTwister& random, int32_t instructions, uint8_t* out) const;

  private:
    struct Emit {
        uint8_t value;      // the byte written
        uint8_t word_mask;  // … or the word's own bits, for an immediate
        uint8_t advance;    // bytes the output moves on
    };

    int shift_;                   // a word's top 32 − shift_ bits choose the entry
    std::vector<uint16_t> next_;  // the first entry of the next state
    std::vector<Emit> emit_;
};

class PythonStream {
  public:
    // `key` as in MersenneTwister.
    PythonStream(std::span<const uint32_t> key, const Options& options);

    // Writes the next instances' traces from out + offsets[0] on, until there are `count` or `capacity` bytes might not
    // hold one more; sets offsets[i + 1] to the end of the i-th, and returns how many were written.
    int64_t fill(uint8_t* out, int64_t capacity, int64_t* offsets, int64_t count);

    // Skips `count` instances.
    void skip(int64_t count);

  private:
    void draw(uint8_t* values, uint8_t* memory);

    Options options_;
    MersenneTwister random_;
    ProgramDrawer drawer_;
    std::vector<uint8_t> skipped_;
};

}  // namespace bgpt::cpu_states
