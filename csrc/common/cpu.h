// The vector instructions of this processor, determined once, at run time.
#pragma once

namespace bgpt {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

// The widest instruction set that both this build and this processor have.
inline Isa best_isa() {
#if defined(__x86_64__)
    static const Isa isa = [] {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            return Isa::avx512;
        }
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? Isa::avx2 : Isa::portable;
    }();
    return isa;
#else
    return Isa::portable;
#endif
}

// Whether Intel made this processor.
inline bool is_intel() {
#if defined(__x86_64__)
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

}  // namespace bgpt
