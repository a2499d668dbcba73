/* The core as a Python module: functions of addresses and numbers, in the limited API, so that one build serves every
   Python from 3.10 on. What they are given is checked by their one caller, kernels/cpu/__init__.py. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

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

/* GOMP_parallel of the OpenMP library that torch has loaded: runs a function on a team of threads. */
typedef void parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);

static parallel *run_parallel;
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

static void forward_on_thread(void *call) { chosen->forward(call); }
static void backward_on_thread(void *call) { chosen->backward(call); }

/* Runs a pass on as many threads as pay. 0, or -1 with a Python error and nothing written. */
static int run(struct call *call, int team, void (*pass)(void *)) {
    struct plan *p = &call->plan;
    int64_t values = call->groups * call->examples * call->channels * call->length;
    int64_t partial = p->parts > 1 && call->measures ? call->groups * p->parts * (2 * call->channels + 1) : 0;
    char *memory;
    call->threads = (int)least(least(team, p->items), most(1, values / VALUES_A_THREAD));
    if (run_parallel == NULL) call->threads = 1;
    call->scratch_size = ceil_div(chosen->scratch_size(call), 64) * 64 + 1024; /* lines a page apart would collide */
    memory = malloc((size_t)(call->threads * call->scratch_size + partial * (int64_t)sizeof(double) + 64));
    if (memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    call->scratch = (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    call->partial = (double *)(call->scratch + call->threads * call->scratch_size);
    call->partial_count = call->partial + partial - (partial ? call->groups * p->parts : 0);
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

/* ---- arguments: the next one, in order ---- */

struct arguments {
    PyObject *const *next;
};

static int64_t number(struct arguments *a) { return PyLong_AsSsize_t(*a->next++); }
static void *address(struct arguments *a) { return PyLong_AsVoidPtr(*a->next++); }
static double real_number(struct arguments *a) { return PyFloat_AsDouble(*a->next++); }

/* Address, dtype and step from group to group. */
static struct vector vector(struct arguments *a) {
    struct vector v;
    v.data = address(a);
    v.dtype = (int)number(a);
    v.step = number(a);
    return v;
}

/* dtype, groups, examples, channels, length, channels_last; activation, slope, eps; threads of the team. */
static int read_shape(struct arguments *a, struct call *call) {
    int team;
    call->dtype = (int)number(a);
    call->groups = number(a);
    call->examples = number(a);
    call->channels = number(a);
    call->length = number(a);
    call->channels_last = (int)number(a);
    call->activation = (int)number(a);
    call->slope = call->activation == LEAKY_RELU ? real_number(a) : (a->next++, 0.0);
    call->eps = real_number(a);
    team = (int)number(a);
    call->plan = steadynorm_plan(call->groups, call->examples, call->channels, call->length, call->channels_last);
    return team;
}

static void read_placement(struct call *call) {
    int64_t itemsize = call->dtype == FLOAT64 ? 8 : call->dtype == FLOAT32 ? 4 : 2;
    int64_t size = call->groups * call->examples * call->channels * call->length * itemsize;
    call->backwards = size > cache_size / 8; /* what was read last is still in the cache */
    call->streams = size > cache_size / 4;   /* what is written would hardly be in the cache when it is read */
}

static PyObject *wrong_number(const char *name, int expected, Py_ssize_t got) {
    PyErr_Format(PyExc_TypeError, "%s: expected %d arguments, got %d", name, expected, (int)got);
    return NULL;
}

/* forward(shape..., x, residual, mask, y, signs, count, mean, m2, variance, given mean*, given var*, weight*, bias*,
   running_mean*, running_var*, momentum, guarded) -> whether the moments are finite, as far as running statistics move.

   Addresses, 0 for none; * is address, dtype and step. count, mean, m2 and variance: float64 (groups, channels), written;
   0 where mean and var are given instead. Without y, only statistics are taken. */
static PyObject *forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a = {args};
    struct call call;
    int team;
    (void)self;
    if (count != 39) return wrong_number("forward", 39, count);
    memset(&call, 0, sizeof call);
    team = read_shape(&a, &call);
    call.x = address(&a);
    call.residual = address(&a);
    call.mask = address(&a);
    call.y = address(&a);
    call.signs = address(&a);
    call.count = address(&a);
    call.mean = address(&a);
    call.m2 = address(&a);
    call.variance = address(&a);
    call.given_mean = vector(&a);
    call.given_var = vector(&a);
    call.weight = vector(&a);
    call.bias = vector(&a);
    call.running_mean = vector(&a);
    call.running_var = vector(&a);
    call.momentum = real_number(&a);
    call.guarded = (int)number(&a);
    if (PyErr_Occurred()) return NULL;
    call.measures = call.count != NULL;
    call.applies = call.y != NULL;
    read_placement(&call);
    if (run(&call, team, forward_on_thread)) return NULL;
    return PyBool_FromLong(!call.infinite);
}

/* backward(shape..., dy, x, residual, mask, signs, dx, dresidual, mean*, var*, weight*, bias*, count, sum_dz,
   sum_dz_xhat, measures, dweight*, dbias*).

   count: float64 (groups, channels), 0 where statistics do not depend on x. The sums, float64 (groups, channels), are
   written if `measures`, else read (or 0 with count 0). */
static PyObject *backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a = {args};
    struct call call;
    int team;
    (void)self;
    if (count != 39) return wrong_number("backward", 39, count);
    memset(&call, 0, sizeof call);
    team = read_shape(&a, &call);
    call.dy = address(&a);
    call.x = address(&a);
    call.residual = address(&a);
    call.mask = address(&a);
    call.signs = address(&a);
    call.dx = address(&a);
    call.dresidual = address(&a);
    call.given_mean = vector(&a);
    call.given_var = vector(&a);
    call.weight = vector(&a);
    call.bias = vector(&a);
    call.count = address(&a);
    call.sum_dz = address(&a);
    call.sum_dz_xhat = address(&a);
    call.measures = (int)number(&a);
    call.dweight = vector(&a);
    call.dbias = vector(&a);
    if (PyErr_Occurred()) return NULL;
    call.varies = call.count != NULL;
    call.applies = call.dx != NULL || call.dresidual != NULL;
    read_placement(&call);
    if (run(&call, team, backward_on_thread)) return NULL;
    Py_RETURN_NONE;
}

/* Shape as in read_shape -> bytes of memory for the signs of all values. */
static PyObject *signs_size(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a = {args};
    struct call call;
    const struct plan *p = &call.plan;
    int64_t lanes, slots;
    (void)self;
    if (count != 10) return wrong_number("signs_size", 10, count);
    memset(&call, 0, sizeof call);
    read_shape(&a, &call);
    if (PyErr_Occurred()) return NULL;
    lanes = chosen->lanes[call.dtype];
    if (p->runs)
        slots = call.examples * call.channels * ((p->pieces - 1) * (p->width / lanes) + sign_slots(p->longest, lanes));
    else
        slots = p->rows * p->tiles * sign_slots(p->width, lanes);
    return PyLong_FromSsize_t((Py_ssize_t)(call.groups * slots * sign_bytes(lanes)));
}

/* unpack_signs(shape..., signs, y): y, bool of x's shape and order, is where the activation's derivative is 1. */
static PyObject *unpack_signs(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    struct arguments a = {args};
    struct call call;
    (void)self;
    if (count != 12) return wrong_number("unpack_signs", 12, count);
    memset(&call, 0, sizeof call);
    read_shape(&a, &call);
    call.signs = address(&a);
    call.y = address(&a);
    if (PyErr_Occurred()) return NULL;
    chosen->unpack(&call);
    Py_RETURN_NONE;
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

/* Address of GOMP_parallel; 0 for none, so that the caller computes alone. */
static PyObject *use_threads(PyObject *self, PyObject *function) {
    void *pointer = PyLong_AsVoidPtr(function);
    (void)self;
    if (PyErr_Occurred()) return NULL;
    run_parallel = (parallel *)pointer;
    Py_RETURN_NONE;
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
    FUNCTION(signs_size, METH_FASTCALL),
    FUNCTION(unpack_signs, METH_FASTCALL),
    FUNCTION(instruction_sets, METH_NOARGS),
    FUNCTION(instruction_set, METH_NOARGS),
    FUNCTION(use_instruction_set, METH_O),
    FUNCTION(use_threads, METH_O),
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
