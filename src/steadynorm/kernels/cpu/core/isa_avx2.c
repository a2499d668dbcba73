/* AVX2, FMA and F16C. */
#include "core.h"

#ifdef STEADYNORM_X86
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define VECTOR_BYTES 32
#define ISA_AVX2 1
#define ISA(name) name##_avx2
#define ISA_NAME "avx2"
#include "isa.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
