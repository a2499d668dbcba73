/* Everything that is compiled once per instruction set. The including file says which: VECTOR_BYTES and ISA(name). */

#include <float.h>
#include <math.h>
#include <string.h>

#ifdef STEADYNORM_X86
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline)) /* long code, called from many loops */
/* Before a loop of a few turns, whose variables are then registers. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
/* Rows in a sample of rows of one position, and values of a run in a sample: a vector of any instruction set. */
enum { SAMPLES = 16, RUN_SAMPLE = 16 };
/* Bytes of a run that is written past the caches wherever it begins. */
enum { STREAMED_RUN = 1 << 13 };
/* Kinds of activation: none, ReLU, another piecewise linear one, one whose derivative is not constant. */
enum { FORM_NONE, FORM_RELU, FORM_BENT, FORM_SMOOTH, FORMS };

#include "channels.h"

#define REAL float
#define INT int32_t
#define REAL_MAX FLT_MAX
#define WIDE 0
#define SIGN_BYTES (VECTOR_BYTES / 4 > 8 ? VECTOR_BYTES / 32 : 1)

#define STORED float
#define HALF 0
#define N(name) name##_float32
#include "passes.h"
#undef STORED
#undef HALF
#undef N

#define STORED uint16_t
#define HALF 1
#define N(name) name##_bfloat16
#include "passes.h"
#undef STORED
#undef HALF
#undef N

#define STORED int16_t
#define HALF 2
#define N(name) name##_float16
#include "passes.h"
#undef STORED
#undef HALF
#undef N

#undef REAL
#undef INT
#undef REAL_MAX
#undef WIDE
#undef SIGN_BYTES
#define REAL double
#define INT int64_t
#define REAL_MAX DBL_MAX
#define WIDE 1
#define SIGN_BYTES 1
#define STORED double
#define HALF 0
#define N(name) name##_float64
#include "passes.h"

/* What every thread of a call runs: its own part of the scratch, and the passes of the call's dtype. */
#define BY_DTYPE(pass)                                            \
    switch (call->dtype) {                                        \
    case FLOAT32: pass##_float32(call, thread, scratch); break;   \
    case FLOAT64: pass##_float64(call, thread, scratch); break;   \
    case BFLOAT16: pass##_bfloat16(call, thread, scratch); break; \
    default: pass##_float16(call, thread, scratch);               \
    }

static void finish_stores(const struct call *call) {
#ifdef STEADYNORM_X86
    if (call->streams) _mm_sfence();
#endif
    (void)call;
}

static void run_forward(struct call *call, int thread) {
    char *scratch = call->scratch + thread * call->scratch_size;
    BY_DTYPE(forward)
    finish_stores(call);
}

static void run_backward(struct call *call, int thread) {
    char *scratch = call->scratch + thread * call->scratch_size;
    BY_DTYPE(backward)
    finish_stores(call);
}

static int64_t scratch_of(const struct call *call) {
    switch (call->dtype) {
    case FLOAT32: return scratch_float32(call);
    case FLOAT64: return scratch_float64(call);
    case BFLOAT16: return scratch_bfloat16(call);
    default: return scratch_float16(call);
    }
}

static void unpack_of(const struct call *call) {
    switch (call->dtype) {
    case FLOAT32: unpack_float32(call); break;
    case FLOAT64: unpack_float64(call); break;
    case BFLOAT16: unpack_bfloat16(call); break;
    default: unpack_float16(call);
    }
}

const struct instructions ISA(steadynorm) = {
    ISA_NAME, {W_float32, W_float64, W_bfloat16, W_float16}, scratch_of, run_forward, run_backward, unpack_of,
};
