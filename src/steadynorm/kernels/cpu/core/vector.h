/* Vectors of one dtype on one instruction set: V holds `W` numbers to compute with, I as many integers as wide.

   Included once per dtype by loops.h. REAL is the number to compute with, INT an integer as wide, STORED how a value
   lies in memory. Arithmetic is the compiler's on vector types; what it cannot say well is here. */

#define V N(V)
#define I N(I)
#define W N(W)
#define TRUTH N(truth)

enum { W = VECTOR_BYTES / sizeof(REAL) };
typedef REAL V __attribute__((vector_size(VECTOR_BYTES)));
typedef INT I __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL N(unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef STORED N(memory) __attribute__((vector_size(VECTOR_BYTES * sizeof(STORED) / sizeof(REAL)), aligned(sizeof(STORED)), may_alias));

typedef INT N(integers) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(INT)), may_alias));
#if HALF == 1
typedef uint32_t N(bits) __attribute__((vector_size(VECTOR_BYTES)));
#endif

INLINE V N(all)(REAL value) { return value - (V){0}; }
INLINE V N(numbers)(const REAL *p) { return (V)*(const N(unaligned) *)p; }
INLINE void N(set_integers)(INT *p, INT value) { *(N(integers) *)p = value - (N(integers)){0}; }
INLINE void N(set_numbers)(REAL *p, V v) { *(N(unaligned) *)p = v; }

/* a * b + c, rounded once where the instruction set can. Spelled out, as a compiler that chose for itself would choose
   differently in different copies of a loop, and bits would depend on where a row begins in memory. */
INLINE V N(multiply_add)(V a, V b, V c) {
#if ISA_AVX512 && WIDE
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif ISA_AVX512
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif ISA_AVX2 && WIDE
    return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif ISA_AVX2
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__) && WIDE
    return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#elif defined(__aarch64__)
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* ---- truth of lanes: a mask register where there are some, else all bits of a lane set or none ---- */

#if ISA_AVX512 && WIDE
typedef __mmask8 TRUTH;
INLINE TRUTH N(at_most)(V a, V b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LE_OQ); }
INLINE TRUTH N(at_least)(V a, V b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GE_OQ); }
INLINE V N(drop)(TRUTH t, V v) { return (V)_mm512_maskz_mov_pd((TRUTH)~t, (__m512d)v); }
INLINE V N(choose)(TRUTH t, V a, V b) { return (V)_mm512_mask_blend_pd(t, (__m512d)b, (__m512d)a); }
#elif ISA_AVX512
typedef __mmask16 TRUTH;
INLINE TRUTH N(at_most)(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
INLINE TRUTH N(at_least)(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
INLINE V N(drop)(TRUTH t, V v) { return (V)_mm512_maskz_mov_ps((TRUTH)~t, (__m512)v); }
INLINE V N(choose)(TRUTH t, V a, V b) { return (V)_mm512_mask_blend_ps(t, (__m512)b, (__m512)a); }
#else
typedef I TRUTH;
INLINE TRUTH N(at_most)(V a, V b) { return (TRUTH)(a <= b); }
INLINE TRUTH N(at_least)(V a, V b) { return (TRUTH)(a >= b); }
INLINE V N(drop)(TRUTH t, V v) { return (V)(~t & (I)v); }
INLINE V N(choose)(TRUTH t, V a, V b) { return (V)((t & (I)a) | (~t & (I)b)); }
#endif

INLINE TRUTH N(either)(TRUTH a, TRUTH b) { return (TRUTH)(a | b); }
INLINE TRUTH N(neither)(TRUTH a) { return (TRUTH)~a; }

INLINE V N(kept)(V v, I keep) { return (V)((I)v & keep); }

/* ---- truth as bits in memory, the first lane's the lowest ---- */

INLINE void N(set_signs)(uint8_t *p, TRUTH t) {
#if ISA_AVX512 && WIDE
    *p = (uint8_t)t;
#elif ISA_AVX512
    memcpy(p, &t, 2);
#elif STEADYNORM_X86 && WIDE && ISA_AVX2
    *p = (uint8_t)_mm256_movemask_pd((__m256d)t);
#elif STEADYNORM_X86 && ISA_AVX2
    *p = (uint8_t)_mm256_movemask_ps((__m256)t);
#elif STEADYNORM_X86 && WIDE
    *p = (uint8_t)_mm_movemask_pd((__m128d)t);
#elif STEADYNORM_X86
    *p = (uint8_t)_mm_movemask_ps((__m128)t);
#else
    unsigned bits = 0;
    for (int lane = 0; lane < W; lane++) bits |= (unsigned)(t[lane] & 1) << lane;
    *p = (uint8_t)bits;
#endif
}

INLINE TRUTH N(signs)(const uint8_t *p) {
#if ISA_AVX512
    TRUTH t;
    memcpy(&t, p, sizeof t);
    return t;
#else
    I lanes;
    for (int lane = 0; lane < W; lane++) lanes[lane] = (INT)1 << lane;
    return (TRUTH)(((((I){0}) + (INT)*p) & lanes) == lanes);
#endif
}

/* ---- values in memory: bfloat16 as uint16, float16 as int16, as their types tell them apart ---- */

#if HALF == 0
INLINE V N(load)(const STORED *p) { return (V)*(const N(memory) *)p; }
INLINE N(memory) N(packed)(V v) { return (N(memory))v; }
#elif HALF == 1 && ISA_AVX512 /* bfloat16; compilers convert these vectors half by half */
INLINE V N(load)(const STORED *p) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)*(const N(memory) *)p), 16);
}
INLINE N(memory) N(packed)(V v) {
    __m512i bits = (__m512i)v, rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
    __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    rounded = _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q),
                                    _mm512_set1_epi32(0x7FC00000));
    return (N(memory))_mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
#elif HALF == 1 && ISA_AVX2
INLINE V N(load)(const STORED *p) {
    return (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)*(const N(memory) *)p), 16);
}
INLINE N(memory) N(packed)(V v) {
    __m256i bits = (__m256i)v, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    __m256i nan = (__m256i)_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC00000), nan), 16);
    rounded = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    return (N(memory))_mm256_castsi256_si128(rounded);
}
#elif HALF == 1
INLINE V N(load)(const STORED *p) { return (V)(__builtin_convertvector(*(const N(memory) *)p, I) << 16); }
INLINE N(memory) N(packed)(V v) {
    N(bits) bits = (N(bits))v;
    N(bits) rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    N(bits) nan = (N(bits))(v != v);
    return __builtin_convertvector((nan & 0x7FC0) | (~nan & rounded), N(memory));
}
#elif ISA_AVX512
INLINE V N(load)(const STORED *p) { return (V)_mm512_cvtph_ps((__m256i)*(const N(memory) *)p); }
INLINE N(memory) N(packed)(V v) {
    return (N(memory))_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif ISA_AVX2
INLINE V N(load)(const STORED *p) { return (V)_mm256_cvtph_ps((__m128i)*(const N(memory) *)p); }
INLINE N(memory) N(packed)(V v) { return (N(memory))_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
INLINE V N(load)(const STORED *p) {
    I half = __builtin_convertvector(*(const N(memory) *)p, I);
    I size = (half & 0x7FFF) << 13;
    V scaled = (V)size * N(all)(0x1p112f); /* exact, and right for subnormal values */
    I infinite = (size >= (0x7C00 << 13)) & 0x7F800000;
    return (V)((I)scaled | infinite | ((half & 0x8000) << 16));
}
INLINE N(memory) N(packed)(V v) {
    I bits = (I)v, sign = (bits >> 16) & 0x8000, size = bits & 0x7FFFFFFF;
    I normal = (size + (((15 - 127) * (1 << 23)) + 0xFFF) + ((size >> 13) & 1)) >> 13;
    I small = (I)((V)size + N(all)(0.5f)) - 0x3F000000; /* 0.5 ends where a subnormal half does: it rounds */
    I is_small = size < 0x38800000, is_large = size >= 0x47800000, is_nan = size > 0x7F800000;
    I half = (is_small & small) | (~is_small & normal);
    half = (is_large & 0x7C00) | (~is_large & half) | (is_nan & 0x200);
    return __builtin_convertvector(half | sign, N(memory));
}
#endif

INLINE void N(store)(STORED *p, V v) { *(N(memory) *)p = N(packed)(v); }

/* Stores past the caches; p is aligned to the vector. */
INLINE void N(stream)(STORED *p, V v) {
#if STEADYNORM_X86
    N(memory) m = N(packed)(v);
    if (sizeof m == 64) {
#if ISA_AVX512
        __m512i wide;
        memcpy(&wide, &m, 64);
        _mm512_stream_si512((__m512i *)p, wide);
#endif
    } else if (sizeof m == 32) {
#if ISA_AVX512 || ISA_AVX2
        __m256i wide;
        memcpy(&wide, &m, 32);
        _mm256_stream_si256((__m256i *)p, wide);
#endif
    } else if (sizeof m == 16) {
        __m128i wide;
        memcpy(&wide, &m, 16);
        _mm_stream_si128((__m128i *)p, wide);
    } else {
        N(store)(p, v);
    }
#else
    N(store)(p, v);
#endif
}

/* Lanes from `first` on have all bits set, the others none. */
INLINE I N(lanes_from)(int64_t first) {
    I lanes;
    for (int lane = 0; lane < W; lane++) lanes[lane] = (INT)lane;
    return lanes >= ((I){0} + (INT)first);
}
