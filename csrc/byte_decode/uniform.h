// The random number of a byte.
#pragma once

#include "common/philox.h"

namespace bgpt {

// In [0, 1), 53 random bits: a function of the seed, the file's random stream and the byte's offset in the file.
BGPT_HOST_DEVICE inline double uniform(uint64_t seed, uint64_t rng_stream, uint64_t byte_offset) {
    const Words words = philox(seed, {{static_cast<uint32_t>(byte_offset), static_cast<uint32_t>(byte_offset >> 32),
                                       static_cast<uint32_t>(rng_stream), static_cast<uint32_t>(rng_stream >> 32)}});
    return static_cast<double>((uint64_t{words.at[0]} << 32 | words.at[1]) >> 11) * 0x1p-53;
}

}  // namespace bgpt
