/* AVX-512: F, BW, DQ and VL. */
#include "core.h"

#ifdef STEADYNORM_X86
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define VECTOR_BYTES 64
#define ISA_AVX512 1
#define ISA(name) name##_avx512
#define ISA_NAME "avx512"
#include "isa.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
