/* Tensors as torch hands them to C: by the exchange table of DLPack 1.x, a standard. It needs no header of torch, and one
   call tells where a tensor lies and how it is laid out. Included by module.c alone. */

struct tensor {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides; /* in values */
    uint64_t byte_offset;
};

struct exchange {
    struct {
        uint32_t major, minor;
    } version;
    void *previous;
    void *allocate, *own, *give;
    int (*look)(void *object, struct tensor *seen); /* 0, or -1 with a Python error; what is seen belongs to the object */
};

enum { ON_CPU = 1, SIGNED = 0, UNSIGNED = 1, FLOAT = 2, BFLOAT = 4, BOOL = 6 }; /* DLPack's numbers of devices and kinds of dtypes */

static const struct exchange *torchs;
static PyObject *plain[2]; /* classes whose objects are nothing but tensors: Tensor and Parameter */

static int is_plain(PyObject *object) {
    return (PyObject *)Py_TYPE(object) == plain[0] || (PyObject *)Py_TYPE(object) == plain[1];
}

/* What lies in memory, of an object that may be None (data is NULL). 0, or -1 with a Python error. */
static int look(PyObject *object, struct tensor *seen) {
    if (object == Py_None) {
        memset(seen, 0, sizeof *seen);
        return 0;
    }
    if (torchs == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "_core: expected use_tensors to be called first.");
        return -1;
    }
    if (torchs->look(object, seen)) return -1;
    seen->data = (char *)seen->data + seen->byte_offset;
    return 0;
}

/* The dtype's number in core.h; -1 for any other. */
static int dtype_of(const struct tensor *t) {
    if (t->dtype.lanes != 1) return -1;
    if (t->dtype.code == BFLOAT) return t->dtype.bits == 16 ? BFLOAT16 : -1;
    if (t->dtype.code != FLOAT) return -1;
    return t->dtype.bits == 32 ? FLOAT32 : t->dtype.bits == 64 ? FLOAT64 : t->dtype.bits == 16 ? FLOAT16 : -1;
}

/* One int64 in the CPU's memory. */
static int is_count(const struct tensor *t) {
    return t->data != NULL && t->device.type == ON_CPU && t->dtype.code == SIGNED && t->dtype.bits == 64 &&
           t->dtype.lanes == 1 && t->ndim == 0;
}

static int64_t size_from(const struct tensor *t, int dimension) {
    int64_t size = 1;
    for (int d = dimension; d < t->ndim; d++) size *= t->shape[d];
    return size;
}

/* Whether the dimensions from `first` on lie densely, in order, `stride` values apart; sizes of 1 lie anywhere. */
static int in_order(const struct tensor *t, int first, int64_t stride) {
    for (int d = t->ndim - 1; d >= first; d--) {
        if (t->shape[d] != 1 && t->strides[d] != stride) return 0;
        stride *= t->shape[d];
    }
    return 1;
}

enum order { CHANNELS_FIRST, CHANNELS_LAST, SCATTERED };

/* Memory order of (N, C, *). */
static enum order order_of(const struct tensor *t) {
    int64_t channels, positions;
    if (t->ndim < 2) return SCATTERED;
    if (in_order(t, 0, 1)) return CHANNELS_FIRST;
    channels = t->shape[1], positions = size_from(t, 2);
    return (channels == 1 || t->strides[1] == 1) && in_order(t, 2, channels) &&
                   (t->shape[0] == 1 || t->strides[0] == channels * positions)
               ? CHANNELS_LAST
               : SCATTERED;
}

/* Whether both are of one dtype and shape, and lie in memory in the same way. */
static int is_alike(const struct tensor *a, const struct tensor *b) {
    if (a->ndim != b->ndim || a->dtype.code != b->dtype.code || a->dtype.bits != b->dtype.bits) return 0;
    if (a->device.type != b->device.type) return 0;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] != b->shape[d] || (a->shape[d] != 1 && a->strides[d] != b->strides[d])) return 0;
    return 1;
}

/* ---- arguments of a call: the next one, in order; after an error all others are NULL or 0 ---- */

struct arguments {
    PyObject *const *next;
    const char *function;
    int failed;
};

static void refuse(struct arguments *a, const char *name, const char *expected) {
    if (!a->failed) PyErr_Format(PyExc_ValueError, "%s: expected %s %s.", a->function, name, expected);
    a->failed = 1;
}

static int64_t number(struct arguments *a) {
    PyObject *object = *a->next++;
    int64_t value = a->failed ? 0 : PyLong_AsSsize_t(object);
    if (value == -1 && PyErr_Occurred()) a->failed = 1;
    return value;
}

static double real_number(struct arguments *a) {
    PyObject *object = *a->next++;
    double value = a->failed ? 0 : PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred()) a->failed = 1;
    return value;
}

/* What lies in the CPU's memory; data is NULL for None, and for nothing else. */
static struct tensor tensor(struct arguments *a, const char *name) {
    PyObject *object = *a->next++;
    struct tensor seen;
    if (a->failed || look(object, &seen)) {
        memset(&seen, 0, sizeof seen);
        a->failed = 1;
    } else if (object != Py_None && (seen.data == NULL || seen.device.type != ON_CPU)) {
        refuse(a, name, "in the CPU's memory");
        memset(&seen, 0, sizeof seen);
    }
    return seen;
}

/* A count of batches; nothing where there is none, or one that only torch can write to. */
static int64_t *counter(struct arguments *a) {
    PyObject *object = *a->next++;
    struct tensor seen;
    if (a->failed || !is_plain(object)) return NULL;
    if (look(object, &seen)) {
        PyErr_Clear();
        return NULL;
    }
    return is_count(&seen) ? seen.data : NULL;
}

/* x: what all others are like. */
static struct tensor data(struct arguments *a, struct call *call) {
    struct tensor x = tensor(a, "x");
    enum order order = order_of(&x);
    call->x = x.data;
    call->dtype = dtype_of(&x);
    if (order == SCATTERED || call->dtype < 0 || x.data == NULL) {
        refuse(a, "x", "(N, C, *) with values, dense, of a dtype of the core");
        return x;
    }
    call->examples = x.shape[0];
    call->channels = x.shape[1];
    call->length = size_from(&x, 2);
    call->channels_last = order == CHANNELS_LAST;
    return x;
}

/* Memory of a tensor of x's dtype, shape and memory order; NULL for none. */
static void *like(struct arguments *a, const char *name, const struct tensor *x) {
    struct tensor t = tensor(a, name);
    if (t.data != NULL && !is_alike(&t, x)) refuse(a, name, "of x's dtype, shape and memory order");
    return t.data;
}

/* The same, where there has to be one. */
static void *required_like(struct arguments *a, const char *name, const struct tensor *x) {
    void *memory = like(a, name, x);
    if (memory == NULL) refuse(a, name, "to be a tensor");
    return memory;
}

/* Memory of so many bytes, dense: a bool mask, or signs. NULL for none. */
static uint8_t *bytes(struct arguments *a, const char *name, int64_t size) {
    struct tensor t = tensor(a, name);
    if (t.data != NULL && ((t.dtype.code != UNSIGNED && t.dtype.code != BOOL) || t.dtype.bits != 8 ||
                           !in_order(&t, 0, 1) || size_from(&t, 0) != size))
        refuse(a, name, "of one byte a value, dense, and no more or fewer of them");
    return t.data;
}

/* Values per channel, (C,) or (groups, C), of any dtype and strides. */
static struct vector vector(struct arguments *a, const char *name, const struct call *call) {
    struct vector v = {0};
    struct tensor t = tensor(a, name);
    if (t.data == NULL) return v;
    v.data = t.data;
    v.dtype = dtype_of(&t);
    if (t.ndim < 1 || t.ndim > 2 || v.dtype < 0 || t.shape[t.ndim - 1] != call->channels ||
        (t.ndim == 2 && t.shape[0] != call->groups)) {
        refuse(a, name, "(C,) or (groups, C), floating-point");
        return (struct vector){0};
    }
    v.stride = t.strides[t.ndim - 1];
    v.step = t.ndim == 2 ? t.strides[0] : 0;
    return v;
}

/* As `vector`, for what is written. */
static struct vector written(struct arguments *a, const char *name, const struct call *call) {
    struct vector v = vector(a, name, call);
    if (v.data != NULL && v.stride == 0 && call->channels > 1) refuse(a, name, "with a place of its own for each channel");
    return v;
}

/* Memory of `lines` lines of (groups, C), float64, dense; NULL for none. */
static double *statistics(struct arguments *a, const char *name, const struct call *call, int64_t lines) {
    struct tensor t = tensor(a, name);
    if (t.data == NULL) return NULL;
    if (dtype_of(&t) != FLOAT64 || !in_order(&t, 0, 1) || size_from(&t, 0) != lines * call->groups * call->channels)
        refuse(a, name, "(groups, C), float64, dense");
    return t.data;
}

/* What a training step keeps of a batch: bytes that hold count, mean, m2 and variance, float64 (4, C). */
static double *kept(struct arguments *a, const struct call *call) {
    PyObject *bytes = *a->next++;
    if (a->failed) return NULL;
    if (!PyBytes_Check(bytes) || PyBytes_Size(bytes) != (Py_ssize_t)(4 * call->channels * (int64_t)sizeof(double))) {
        refuse(a, "kept", "what `train` gave for as many channels");
        return NULL;
    }
    return (double *)PyBytes_AsString(bytes);
}
