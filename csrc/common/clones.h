// BGPT_CLONES before a function: the compiler makes an AVX-512, an AVX2 and a portable version of it, and the loader
// picks the one for the processor. For loops that the compiler vectorises by itself.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define BGPT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BGPT_CLONES
#endif
