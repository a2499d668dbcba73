/* What every processor of this architecture has: SSE2 on x86-64, NEON on aarch64. */
#include "core.h"

#define VECTOR_BYTES 16
#define ISA(name) name##_baseline
#ifdef STEADYNORM_X86
#define ISA_NAME "sse2"
#else
#define ISA_NAME "baseline"
#endif
#include "isa.h"
