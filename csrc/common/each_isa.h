// Compiles a file of kernels for each instruction set: include this after `#define BGPT_KERNELS "op/kernels.h"`. The
// file is included in turn with BGPT_ISA, its namespace, as portable, avx2 and avx512 (and avx512_bf16 where the
// including file defines BGPT_WITH_BF16_DOT), BGPT_VEC as 0, 1 and 2, and common/vec.h for that instruction set.
// BGPT_DISPATCH(isa, f) is then the f of the instruction set `isa`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/bf16.h"
#include "common/cpu.h"

#define BGPT_ISA portable
#define BGPT_VEC 0
#include "common/vec.h"
#include BGPT_KERNELS
#undef BGPT_ISA
#undef BGPT_VEC

#if defined(__x86_64__)
#include <immintrin.h>

#define BGPT_ISA avx2
#define BGPT_VEC 1
#include "common/vec.h"
#include BGPT_KERNELS
#undef BGPT_ISA
#undef BGPT_VEC

#define BGPT_ISA avx512
#define BGPT_VEC 2
#define BGPT_MORE_FEATURES ""
#include "common/vec.h"
#include BGPT_KERNELS
#undef BGPT_ISA
#undef BGPT_MORE_FEATURES

#if defined(BGPT_WITH_BF16_DOT)
#define BGPT_ISA avx512_bf16
#define BGPT_BF16_DOT
#define BGPT_MORE_FEATURES ",avx512bf16"
#include "common/vec.h"
#include BGPT_KERNELS
#undef BGPT_ISA
#undef BGPT_BF16_DOT
#endif
#undef BGPT_VEC

#define BGPT_DISPATCH(isa, ...) \
    ((isa) == Isa::avx512 ? avx512::__VA_ARGS__ : (isa) == Isa::avx2 ? avx2::__VA_ARGS__ : portable::__VA_ARGS__)
#else
#define BGPT_DISPATCH(isa, ...) (static_cast<void>(isa), portable::__VA_ARGS__)
#endif
