/* What all files of the core share: the record of a call, how a tensor is cut, and the entry points of an instruction set.

   The core works on (groups * N, C, L) in either memory order and knows neither torch nor Python: tensors are addresses.
   Elements are computed in float32 (float64 for float64), statistics and everything else per channel in float64. */
#ifndef STEADYNORM_CORE_H
#define STEADYNORM_CORE_H

#include <stdatomic.h>
#include <stdint.h>

enum dtype { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, DTYPES };

/* Activations, in the order of ACTIVATIONS in kernels/__init__.py. One from RELU up to LEAKY_RELU is piecewise linear: its derivative is 1 or `slope`, which one bit can keep. */
enum activation { NONE, RELU, RELU6, LEAKY_RELU, SILU, HARDSWISH, GELU, SIGMOID, TANH };

/* Values per channel of any dtype; data is NULL where there are none. */
struct vector {
    void *data;
    int dtype;
    int64_t stride; /* from one channel to the next */
    int64_t step;   /* from one group to the next; 0 where all groups share them */
};

/* How a tensor is cut into items that threads take, see plan.c. Decided before any thread begins. */
struct plan {
    int runs;          /* a row has values of one channel (else of several) */
    int64_t inner;     /* consecutive values of one channel in a row of several: L, or 1 with channels last */
    int64_t stride;    /* values from one row of columns to the next; runs: from one channel to the next */
    int64_t width;     /* values of a row (runs: of a piece; the last piece of an example is longer) */
    int64_t rows;      /* rows of a tile: runs: examples * pieces */
    int64_t pieces;    /* rows into which a run of L values is cut */
    int64_t channels;  /* channels of a tile; the last tile may have fewer */
    int64_t tiles;     /* tiles of a group */
    int64_t parts;     /* shares into which the rows of a tile are cut; their statistics are merged */
    int64_t items;     /* groups * tiles * parts */
    int64_t longest;   /* values of the longest row */
};

/* The items of a thread, which it takes one after the other; whoever has done its own helps the others. */
struct queue {
    _Atomic int64_t taken, taken_again; /* begin at 0 */
    char apart[48];                     /* a line of cache for each queue */
};

struct instructions;

struct call {
    /* data: (groups * examples, channels, length) in the memory order of x */
    const void *x, *dy, *residual; /* dy: backward only; residual: NULL for none */
    const uint8_t *mask;           /* bool (groups * examples, length), 1 where an element is real; NULL for all */
    void *y, *dx, *dresidual;      /* written; NULL where not wanted */
    uint8_t *signs;                /* one bit a value: the activation's derivative is 1. forward writes, backward reads */
    int dtype, channels_last;
    int64_t groups, examples, channels, length;

    /* statistics, float64 (groups, channels) */
    double *count, *mean, *m2;            /* forward: written if `measures`; backward: count is read */
    double *variance;                     /* forward: m2 / count, written if it is not NULL */
    struct vector given_mean, given_var;  /* read where statistics are not measured */
    double *sum_dz, *sum_dz_xhat;         /* backward: written if `measures` (NULL: seen by nobody), else read */
    double *partial;                      /* (groups, parts, 2, channels): what the parts of tiles found */
    double *partial_count;                /* (groups, parts) */

    /* parameters, and what one group moves or is given */
    struct vector weight, bias, running_mean, running_var, dweight, dbias;
    double eps, slope, momentum;
    int activation, guarded; /* guarded: running statistics stay where the batch's moments are not finite */

    int measures;  /* statistics (forward) or sums (backward) are taken */
    int applies;   /* y (forward) or dx and dresidual (backward) are written */
    int varies;    /* backward: statistics depend on x */
    int streams;   /* what is written goes past the caches: non-temporal stores */
    int backwards; /* items are taken from the last to the first where they are read for the second time */
    int threads;
    struct queue *queues; /* one a thread */
    const struct instructions *instructions;
    struct plan plan;

    char *scratch;         /* threads * scratch_size bytes, 64-byte aligned */
    int64_t scratch_size;

    /* shared by the threads; begin at 0 */
    _Atomic int64_t finished, ready;
    int infinite; /* set by the thread that merges: the batch's moments are not finite */
};

/* Lets another thread have the processor. */
void steadynorm_give_way(void);

/* measures: whether statistics or sums are taken, so that memory is read twice; itemsize: bytes of a value. */
struct plan steadynorm_plan(int64_t groups, int64_t examples, int64_t channels, int64_t length, int channels_last,
                            int measures, int masked, int64_t itemsize);

/* One instruction set: its name, values of a vector by dtype, and the passes, which every thread of a call runs. */
struct instructions {
    const char *name;
    int lanes[DTYPES];
    int64_t (*scratch_size)(const struct call *);
    void (*forward)(struct call *, int thread);
    void (*backward)(struct call *, int thread);
    void (*unpack)(const struct call *); /* signs -> y, bool */
};

/* Bytes that hold the signs of one vector of so many values. */
static inline int64_t sign_bytes(int64_t lanes) { return lanes > 8 ? lanes / 8 : 1; }

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Vectors of signs of a row of so many values. */
static inline int64_t sign_slots(int64_t width, int64_t lanes) { return ceil_div(width, lanes); }

extern const struct instructions steadynorm_baseline;
#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define STEADYNORM_X86 1
extern const struct instructions steadynorm_avx2, steadynorm_avx512;
#endif

#endif
