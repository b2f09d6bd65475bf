// Philox4x32-10, a counter-based random generator: the words depend on key and counter alone, on any processor.
// Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace bgpt {

struct Words {
    uint32_t at[4];
};

BGPT_HOST_DEVICE inline Words philox(uint64_t key, Words counter) {
    uint32_t x0 = counter.at[0], x1 = counter.at[1], x2 = counter.at[2], x3 = counter.at[3];
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p = uint64_t{0xD2511F53} * x0, q = uint64_t{0xCD9E8D57} * x2;
        x0 = static_cast<uint32_t>(q >> 32) ^ x1 ^ k0;
        x1 = static_cast<uint32_t>(q);
        x2 = static_cast<uint32_t>(p >> 32) ^ x3 ^ k1;
        x3 = static_cast<uint32_t>(p);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{x0, x1, x2, x3}};
}

}  // namespace bgpt
