/* The core as a Python module: functions of tensors and numbers, in the limited API, so that one build serves every
   Python from 3.10 on. They refuse what does not fit, but make nothing fit: see their one caller, kernels/cpu. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "tensors.h"

#ifdef STEADYNORM_X86
#include <cpuid.h>
#endif
#ifndef _WIN32
#include <sched.h>
#include <unistd.h>
#endif

enum {
    VALUES_A_THREAD = 1 << 14, /* values that take longer to compute than a further thread takes to wake */
    QUICK = 1 << 14            /* values so few that other Python threads need not be let in */
};

/* Of the OpenMP library that torch has loaded: GOMP_parallel, which runs a function on a team of threads, and
   omp_get_thread_num, the number of the thread in its team, from 0 on. */
typedef void parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);
typedef int thread_number(void);

static parallel *run_parallel;
static thread_number *number_of_thread;
static const struct instructions *chosen;
static int64_t cache_size = 1 << 25; /* bytes of the last cache, where the system does not say */

void steadynorm_give_way(void) {
#ifndef _WIN32
    sched_yield();
#endif
}

/* ---- instruction sets ---- */

#ifdef STEADYNORM_X86
/* Whether float16 is converted by the processor, which not every compiler can ask by name. */
static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

static int available(const struct instructions **found) {
    int number = 0;
    found[number++] = &steadynorm_baseline;
#ifdef STEADYNORM_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
        found[number++] = &steadynorm_avx2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            found[number++] = &steadynorm_avx512;
    }
#endif
    return number;
}

/* ---- a call ---- */

static void forward_on_thread(void *data) {
    struct call *call = data;
    int thread = call->threads > 1 ? number_of_thread() : 0;
    if (thread < call->threads) call->instructions->forward(call, thread);
}

static void backward_on_thread(void *data) {
    struct call *call = data;
    int thread = call->threads > 1 ? number_of_thread() : 0;
    if (thread < call->threads) call->instructions->backward(call, thread);
}

/* Runs a pass on as many threads as pay. 0, or -1 with a Python error and nothing written. */
static int run(struct call *call, int team, void (*pass)(void *)) {
    struct plan *p = &call->plan;
    int64_t values = call->groups * call->examples * call->channels * call->length;
    int64_t partial = p->parts > 1 && call->measures ? call->groups * p->parts * (2 * call->channels + 1) : 0;
    int64_t sums = call->dy != NULL && call->measures && call->sum_dz == NULL ? 2 * call->channels : 0;
    size_t queues;
    char *memory;
    call->threads = (int)least(least(team, p->items), most(1, values / VALUES_A_THREAD));
    if (run_parallel == NULL) call->threads = 1;
    call->instructions = chosen; /* another Python thread may choose others meanwhile */
    call->scratch_size = ceil_div(call->instructions->scratch_size(call), 64) * 64 + 1024; /* lines a page apart would collide */
    queues = (size_t)call->threads * sizeof *call->queues;
    memory = malloc(queues + (size_t)(call->threads * call->scratch_size + (partial + sums) * (int64_t)sizeof(double) + 64));
    if (memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    call->queues = (struct queue *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    memset(call->queues, 0, queues);
    call->scratch = (char *)call->queues + queues;
    call->partial = (double *)(call->scratch + call->threads * call->scratch_size);
    call->partial_count = call->partial + partial - (partial ? call->groups * p->parts : 0);
    if (sums) { /* nobody wants to see them */
        call->sum_dz = call->partial + partial;
        call->sum_dz_xhat = call->sum_dz + call->channels;
    }
    if (values <= QUICK) {
        pass(call);
    } else {
        Py_BEGIN_ALLOW_THREADS
        /* always as many as torch asks for: OpenMP ends and begins threads when that number changes */
        if (call->threads == 1)
            pass(call);
        else
            run_parallel(pass, call, (unsigned)team, 0);
        Py_END_ALLOW_THREADS
    }
    free(memory);
    return 0;
}

/* ---- functions ---- */

static int begin(struct arguments *a, const char *function, PyObject *const *args, Py_ssize_t count, int expected) {
    a->next = args, a->function = function, a->failed = 0;
    if (count == expected) return 0;
    PyErr_Format(PyExc_TypeError, "%s: expected %d arguments, got %d", function, expected, (int)count);
    return -1;
}

static int64_t itemsize(const struct call *call) {
    return call->dtype == FLOAT64 ? 8 : call->dtype == FLOAT32 ? 4 : 2;
}

static void plan(struct call *call) {
    call->plan = steadynorm_plan(call->groups, call->examples, call->channels, call->length, call->channels_last,
                                 call->measures, call->mask != NULL, itemsize(call));
}

/* groups, which are read before what depends on them */
static void read_groups(struct arguments *a, struct call *call) {
    call->groups = number(a);
    if (a->failed) return;
    if (call->groups < 1 || call->examples % call->groups)
        refuse(a, "groups", "to divide the examples");
    else
        call->examples /= call->groups;
}

/* activation, slope, eps; threads of the team, which are returned */
static int read_settings(struct arguments *a, struct call *call) {
    call->activation = (int)number(a);
    call->slope = real_number(a);
    if (call->activation != LEAKY_RELU) call->slope = 0;
    call->eps = real_number(a);
    return (int)number(a);
}

/* Bytes of the mask, if there is one. */
static int64_t mask_size(const struct call *call) { return call->groups * call->examples * call->length; }

/* Bytes of memory for the signs of all values, by the plan. */
static int64_t size_of_signs(const struct call *call) {
    const struct plan *p = &call->plan;
    int64_t lanes = chosen->lanes[call->dtype], slots;
    if (p->runs)
        slots = call->examples * call->channels * ((p->pieces - 1) * (p->width / lanes) + sign_slots(p->longest, lanes));
    else
        slots = p->rows * p->tiles * sign_slots(p->width, lanes);
    return slots * sign_bytes(lanes);
}

static uint8_t *read_signs(struct arguments *a, struct call *call) {
    if (!a->failed) plan(call);
    return bytes(a, "signs", a->failed ? 0 : size_of_signs(call));
}

/* Runs a pass over what the arguments said. 0, or -1 with a Python error and nothing written. */
static int compute(const struct arguments *a, struct call *call, int team, void (*pass)(void *)) {
    int64_t size = call->groups * call->examples * call->channels * call->length * itemsize(call);
    if (a->failed) return -1;
    call->backwards = size > cache_size / 8; /* what was read last is still in the cache */
    call->streams = size > cache_size / 4;   /* what is written would hardly be in the cache when it is read */
    plan(call);
    return run(call, team, pass);
}

/* forward(x, groups, residual, mask, y, count, mean, m2, given mean, given var, weight, bias, activation, slope, eps,
   threads). None for what is not there; count, mean and m2 are written, unless mean and var are given. Without y, only
   statistics are taken. */
static PyObject *forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a;
    struct call call = {0};
    struct tensor x;
    int team;
    (void)self;
    if (begin(&a, "forward", args, count, 16)) return NULL;
    x = data(&a, &call);
    read_groups(&a, &call);
    call.residual = like(&a, "residual", &x);
    call.mask = bytes(&a, "mask", mask_size(&call));
    call.y = like(&a, "y", &x);
    call.count = statistics(&a, "count", &call, 1);
    call.mean = statistics(&a, "mean", &call, 1);
    call.m2 = statistics(&a, "m2", &call, 1);
    call.given_mean = vector(&a, "mean", &call);
    call.given_var = vector(&a, "var", &call);
    call.weight = vector(&a, "weight", &call);
    call.bias = vector(&a, "bias", &call);
    team = read_settings(&a, &call);
    call.measures = call.count != NULL;
    call.applies = call.y != NULL;
    if ((call.mean == NULL) == call.measures || (call.m2 == NULL) == call.measures)
        refuse(&a, "count, mean and m2", "to be all or none");
    if (compute(&a, &call, team, forward_on_thread)) return NULL;
    Py_RETURN_NONE;
}

/* train(x, residual, mask, y, signs, weight, bias, running_mean, running_var, batches, momentum, guarded, activation,
   slope, eps, threads) -> (found, kept).

   batches: number of batches so far; if it is int64, it grows by one, unless a guard keeps the batch out. found: 1 if
   the moments are finite, as far as running statistics move, plus 2 if the batch was counted. kept: for `train_backward`;
   bytes, as a tensor takes longer to make than a small one to normalize. */
static PyObject *train(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a;
    struct call call = {.groups = 1, .measures = 1, .applies = 1};
    struct tensor x;
    int64_t *batches;
    PyObject *keep, *found, *both;
    int team, counted;
    (void)self;
    if (begin(&a, "train", args, count, 16)) return NULL;
    x = data(&a, &call);
    call.residual = like(&a, "residual", &x);
    call.mask = bytes(&a, "mask", mask_size(&call));
    call.y = required_like(&a, "y", &x);
    call.signs = read_signs(&a, &call);
    call.weight = vector(&a, "weight", &call);
    call.bias = vector(&a, "bias", &call);
    call.running_mean = written(&a, "running_mean", &call);
    call.running_var = written(&a, "running_var", &call);
    batches = counter(&a);
    call.momentum = real_number(&a);
    call.guarded = (int)number(&a);
    team = read_settings(&a, &call);
    if ((call.running_mean.data == NULL) != (call.running_var.data == NULL)) refuse(&a, "running statistics", "to be both or neither");
    if (a.failed) return NULL;
    keep = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(4 * call.channels * (int64_t)sizeof(double)));
    if (keep == NULL) return NULL;
    call.count = (double *)PyBytes_AsString(keep);
    call.mean = call.count + call.channels;
    call.m2 = call.mean + call.channels;
    call.variance = call.m2 + call.channels;
    if (compute(&a, &call, team, forward_on_thread)) {
        Py_DECREF(keep);
        return NULL;
    }
    counted = batches != NULL && !(call.infinite && call.guarded);
    if (counted) ++*batches;
    found = PyLong_FromLong(!call.infinite + 2 * counted);
    both = found == NULL ? NULL : PyTuple_Pack(2, found, keep);
    Py_XDECREF(found);
    Py_DECREF(keep);
    return both;
}

/* backward(x, groups, dy, residual, mask, dx, dresidual, mean, var, weight, bias, count, sum_dz, sum_dz_xhat, measures,
   activation, slope, eps, threads).

   count: None where statistics do not depend on x. The sums are written if `measures`, else read (or None, as count). */
static PyObject *backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a;
    struct call call = {0};
    struct tensor x;
    int team;
    (void)self;
    if (begin(&a, "backward", args, count, 19)) return NULL;
    x = data(&a, &call);
    read_groups(&a, &call);
    call.dy = required_like(&a, "dy", &x);
    call.residual = like(&a, "residual", &x);
    call.mask = bytes(&a, "mask", mask_size(&call));
    call.dx = like(&a, "dx", &x);
    call.dresidual = like(&a, "dresidual", &x);
    call.given_mean = vector(&a, "mean", &call);
    call.given_var = vector(&a, "var", &call);
    call.weight = vector(&a, "weight", &call);
    call.bias = vector(&a, "bias", &call);
    call.count = statistics(&a, "count", &call, 1);
    call.sum_dz = statistics(&a, "sum_dz", &call, 1);
    call.sum_dz_xhat = statistics(&a, "sum_dz_xhat", &call, 1);
    call.measures = (int)number(&a);
    team = read_settings(&a, &call);
    call.varies = call.count != NULL;
    if ((call.sum_dz == NULL || call.sum_dz_xhat == NULL) && (call.measures || call.varies))
        refuse(&a, "sums", "to be two");
    call.applies = call.dx != NULL || call.dresidual != NULL;
    if (compute(&a, &call, team, backward_on_thread)) return NULL;
    Py_RETURN_NONE;
}

/* train_backward(x, dy, residual, mask, signs, dx, dresidual, kept, weight, bias, dweight, dbias, activation, slope, eps,
   threads). */
static PyObject *train_backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a;
    struct call call = {.groups = 1, .measures = 1, .varies = 1};
    struct tensor x;
    int team;
    (void)self;
    if (begin(&a, "train_backward", args, count, 16)) return NULL;
    x = data(&a, &call);
    call.dy = required_like(&a, "dy", &x);
    call.residual = like(&a, "residual", &x);
    call.mask = bytes(&a, "mask", mask_size(&call));
    call.signs = read_signs(&a, &call);
    call.dx = like(&a, "dx", &x);
    call.dresidual = like(&a, "dresidual", &x);
    call.count = kept(&a, &call);
    call.weight = vector(&a, "weight", &call);
    call.bias = vector(&a, "bias", &call);
    call.dweight = written(&a, "dweight", &call);
    call.dbias = written(&a, "dbias", &call);
    team = read_settings(&a, &call);
    if (a.failed) return NULL;
    call.given_mean = (struct vector){call.count + call.channels, FLOAT64, 1, 0};
    call.given_var = (struct vector){call.count + 3 * call.channels, FLOAT64, 1, 0};
    call.applies = call.dx != NULL || call.dresidual != NULL;
    if (compute(&a, &call, team, backward_on_thread)) return NULL;
    Py_RETURN_NONE;
}

/* signs_size(x, mask) -> bytes of memory for the signs of all values. */
static PyObject *signs_size(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a;
    struct call call = {.groups = 1, .measures = 1};
    (void)self;
    if (begin(&a, "signs_size", args, count, 2)) return NULL;
    data(&a, &call);
    call.mask = bytes(&a, "mask", mask_size(&call));
    if (a.failed) return NULL;
    plan(&call);
    return PyLong_FromSsize_t((Py_ssize_t)size_of_signs(&call));
}

/* unpack_signs(x, mask, signs, y): y, bool of x's shape and order, is where the activation's derivative is 1. */
static PyObject *unpack_signs(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a;
    struct call call = {.groups = 1, .measures = 1};
    struct tensor x, y;
    (void)self;
    if (begin(&a, "unpack_signs", args, count, 4)) return NULL;
    x = data(&a, &call);
    call.mask = bytes(&a, "mask", mask_size(&call));
    call.signs = read_signs(&a, &call);
    y = tensor(&a, "y");
    call.y = y.data;
    y.dtype = x.dtype; /* but for the dtype, y is like x */
    if (call.signs == NULL || call.y == NULL || !is_alike(&y, &x)) refuse(&a, "signs and y", "of x's shape and memory order");
    if (a.failed) return NULL;
    chosen->unpack(&call);
    Py_RETURN_NONE;
}

/* ---- questions ---- */

/* takes(x, residual, weight, bias, mean, var) -> whether these are to be computed with as they are. No says nothing of why.

   They are if all are None or plain tensors in the CPU's memory, x is dense and of a dtype of the core, the residual lies
   as x does, and the others are (C,), dense, of x's dtype or float32 beside 16 bits. Gaps between values, and a tensor of
   one value, may come with a negative bit, which the table does not tell: torch sees to these. */
static PyObject *takes(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct tensor x, other;
    int dtype, fits;
    (void)self;
    if (count != 6) return PyErr_Format(PyExc_TypeError, "takes: expected 6 arguments, got %d", (int)count);
    fits = is_plain(args[0]) && look(args[0], &x) == 0;
    if (fits) {
        dtype = dtype_of(&x);
        fits = x.device.type == ON_CPU && x.data != NULL && dtype >= 0 && order_of(&x) != SCATTERED;
        if (fits && args[1] != Py_None)
            fits = is_plain(args[1]) && look(args[1], &other) == 0 && other.data != NULL && is_alike(&other, &x);
        for (int k = 2; fits && k < 6; k++) {
            if (args[k] == Py_None) continue;
            fits = is_plain(args[k]) && look(args[k], &other) == 0 && other.device.type == ON_CPU && other.ndim == 1 &&
                   other.data != NULL && other.shape[0] == x.shape[1] && other.strides[0] == 1 &&
                   (dtype_of(&other) == dtype || (dtype_of(&other) == FLOAT32 && dtype >= BFLOAT16));
        }
        fits = fits && size_from(&x, 0) > 1;
    }
    PyErr_Clear(); /* one of a transformation's tensors has no memory */
    return PyBool_FromLong(fits);
}

/* alike(x, ...) -> whether x is dense, and all others are None or of its dtype, shape and memory order, in memory (torch
   knows zeros that have none). */
static PyObject *alike(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct tensor x, other;
    (void)self;
    if (count < 1 || look(args[0], &x)) return NULL;
    if (order_of(&x) == SCATTERED) Py_RETURN_FALSE;
    for (Py_ssize_t k = 1; k < count; k++) {
        if (args[k] == Py_None) continue;
        if (look(args[k], &other)) return NULL;
        if (other.data == NULL || !is_alike(&other, &x)) Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

/* ---- settings ---- */

static PyObject *instruction_sets(PyObject *self, PyObject *unused) {
    const struct instructions *found[3];
    int number = available(found);
    PyObject *names = PyTuple_New(number);
    (void)self, (void)unused;
    for (int k = 0; names != NULL && k < number; k++) {
        PyObject *name = PyUnicode_FromString(found[k]->name);
        if (name == NULL || PyTuple_SetItem(names, k, name)) {
            Py_DECREF(names);
            return NULL;
        }
    }
    return names;
}

static PyObject *instruction_set(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyUnicode_FromString(chosen->name);
}

/* Whether there is one of this name, which is then used. */
static PyObject *use_instruction_set(PyObject *self, PyObject *name) {
    const struct instructions *found[3];
    int number = available(found);
    (void)self;
    for (int k = 0; k < number; k++) {
        PyObject *candidate = PyUnicode_FromString(found[k]->name);
        int same = candidate == NULL ? -1 : PyObject_RichCompareBool(name, candidate, Py_EQ);
        Py_XDECREF(candidate);
        if (same < 0) return NULL;
        if (same) {
            chosen = found[k];
            Py_RETURN_TRUE;
        }
    }
    Py_RETURN_FALSE;
}

/* use_threads(address of GOMP_parallel, address of omp_get_thread_num); 0 for none, so that the caller computes alone. */
static PyObject *use_threads(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    void *found[2] = {NULL, NULL};
    (void)self;
    if (count != 2) return PyErr_Format(PyExc_TypeError, "use_threads: expected 2 arguments, got %d", (int)count);
    for (int k = 0; k < 2; k++) found[k] = PyLong_AsVoidPtr(args[k]);
    if (PyErr_Occurred()) return NULL;
    run_parallel = found[1] == NULL ? NULL : (parallel *)found[0];
    number_of_thread = (thread_number *)found[1];
    Py_RETURN_NONE;
}

/* use_tensors(exchange table, Tensor, Parameter) -> whether the table is one that this module can read. */
static PyObject *use_tensors(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const struct exchange *table;
    (void)self;
    if (count != 3) return PyErr_Format(PyExc_TypeError, "use_tensors: expected 3 arguments, got %d", (int)count);
    table = PyCapsule_IsValid(args[0], "dlpack_exchange_api") ? PyCapsule_GetPointer(args[0], "dlpack_exchange_api") : NULL;
    if (table == NULL || table->version.major != 1 || table->look == NULL) Py_RETURN_FALSE;
    torchs = table;
    for (int k = 0; k < 2; k++) {
        Py_INCREF(args[k + 1]);
        Py_XDECREF(plain[k]);
        plain[k] = args[k + 1];
    }
    Py_RETURN_TRUE;
}

/* Sets the bytes of the last cache, beyond which memory decides; gives what they were. */
static PyObject *use_cache_size(PyObject *self, PyObject *bytes) {
    int64_t before = cache_size, now = PyLong_AsSsize_t(bytes);
    (void)self;
    if (PyErr_Occurred()) return NULL;
    cache_size = now;
    return PyLong_FromSsize_t((Py_ssize_t)before);
}

#define FUNCTION(name, flags) {#name, (PyCFunction)(void (*)(void))name, flags, NULL}

static PyMethodDef methods[] = {
    FUNCTION(forward, METH_FASTCALL),
    FUNCTION(backward, METH_FASTCALL),
    FUNCTION(train, METH_FASTCALL),
    FUNCTION(train_backward, METH_FASTCALL),
    FUNCTION(takes, METH_FASTCALL),
    FUNCTION(alike, METH_FASTCALL),
    FUNCTION(use_tensors, METH_FASTCALL),
    FUNCTION(signs_size, METH_FASTCALL),
    FUNCTION(unpack_signs, METH_FASTCALL),
    FUNCTION(instruction_sets, METH_NOARGS),
    FUNCTION(instruction_set, METH_NOARGS),
    FUNCTION(use_instruction_set, METH_O),
    FUNCTION(use_threads, METH_FASTCALL),
    FUNCTION(use_cache_size, METH_O),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__core(void) {
    const struct instructions *found[3];
    chosen = found[available(found) - 1];
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (sysconf(_SC_LEVEL3_CACHE_SIZE) > 0) cache_size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return PyModule_Create(&definition);
}
