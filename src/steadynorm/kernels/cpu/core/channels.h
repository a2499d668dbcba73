/* What is done per channel, in float64: parameters read and written, parts merged, running statistics moved.
   Included once per instruction set. */

/* ---- vectors of any dtype ---- */

static float half_to_float(uint16_t half) {
    uint32_t bits, size = (uint32_t)(half & 0x7FFF) << 13;
    float scaled;
    memcpy(&scaled, &size, 4);
    scaled *= 0x1p112f; /* exact, and right for subnormal values */
    memcpy(&bits, &scaled, 4);
    if (size >= 0x7C00u << 13) bits |= 0x7F800000;
    bits |= (uint32_t)(half & 0x8000) << 16;
    memcpy(&scaled, &bits, 4);
    return scaled;
}

static uint16_t float_to_half(float value) {
    uint32_t bits, size, half;
    memcpy(&bits, &value, 4);
    size = bits & 0x7FFFFFFF;
    if (size >= 0x47800000) { /* 65536 */
        half = size > 0x7F800000 ? 0x7E00 : 0x7C00;
    } else if (size < 0x38800000) { /* below 2^-14: 0.5 ends where a subnormal half does, so that adding it rounds */
        float small;
        memcpy(&small, &size, 4);
        small += 0.5f;
        memcpy(&half, &small, 4);
        half -= 0x3F000000;
    } else {
        half = (size - (112u << 23) + 0xFFF + ((size >> 13) & 1)) >> 13;
    }
    return (uint16_t)(half | ((bits >> 16) & 0x8000));
}

static float bfloat_to_float(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

static uint16_t float_to_bfloat(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)(value != value ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/* Of one group, from channel `first` on; `missing` where there is no vector. */
static void read_vector(struct vector v, int64_t group, int64_t first, int64_t number, double missing, double *values) {
    int64_t from = group * v.step + first * v.stride, stride = v.stride;
    if (v.data == NULL) {
        for (int64_t c = 0; c < number; c++) values[c] = missing;
        return;
    }
    switch (v.dtype) {
    case FLOAT32:
        for (int64_t c = 0; c < number; c++) values[c] = ((const float *)v.data)[from + c * stride];
        break;
    case FLOAT64:
        for (int64_t c = 0; c < number; c++) values[c] = ((const double *)v.data)[from + c * stride];
        break;
    case BFLOAT16:
        for (int64_t c = 0; c < number; c++) values[c] = bfloat_to_float(((const uint16_t *)v.data)[from + c * stride]);
        break;
    default:
        for (int64_t c = 0; c < number; c++) values[c] = half_to_float(((const uint16_t *)v.data)[from + c * stride]);
    }
}

/* Of the only group, from channel `first` on. */
static void write_vector(struct vector v, int64_t first, int64_t number, const double *values) {
    int64_t from = first * v.stride, stride = v.stride;
    if (v.data == NULL) return;
    switch (v.dtype) {
    case FLOAT32:
        for (int64_t c = 0; c < number; c++) ((float *)v.data)[from + c * stride] = (float)values[c];
        break;
    case FLOAT64:
        for (int64_t c = 0; c < number; c++) ((double *)v.data)[from + c * stride] = values[c];
        break;
    case BFLOAT16:
        for (int64_t c = 0; c < number; c++) ((uint16_t *)v.data)[from + c * stride] = float_to_bfloat((float)values[c]);
        break;
    default:
        for (int64_t c = 0; c < number; c++) ((uint16_t *)v.data)[from + c * stride] = float_to_half((float)values[c]);
    }
}

/* ---- statistics of parts ---- */

/* Moments of each group's parts -> of the group (Chan et al. 1983), in the order of the parts. */
static void merge_moments(const struct call *call) {
    const struct plan *p = &call->plan;
    int64_t channels = call->channels;
    for (int64_t group = 0; group < call->groups; group++) {
        double *mean = call->mean + group * channels, *m2 = call->m2 + group * channels;
        const double *counts = call->partial_count + group * p->parts;
        double total = counts[0];
        const double *part = call->partial + group * p->parts * 2 * channels;
        memcpy(mean, part, (size_t)channels * sizeof(double));
        memcpy(m2, part + channels, (size_t)channels * sizeof(double));
        for (int64_t k = 1; k < p->parts; k++) {
            const double *more_mean = part + 2 * k * channels, *more_m2 = more_mean + channels;
            double more = counts[k], share, weight;
            total += more;
            share = more / (total > 1 ? total : 1);
            weight = share * (total - more);
            for (int64_t c = 0; c < channels; c++) {
                double distance = more_mean[c] - mean[c];
                /* an infinite mean stays infinite: inf - inf would be nan */
                double merged = fabs(distance) <= DBL_MAX ? mean[c] + distance * share
                                                          : mean[c] * (1 - share) + more_mean[c] * share;
                m2[c] += more_m2[c] + distance * distance * weight;
                mean[c] = merged;
            }
        }
        for (int64_t c = 0; c < channels; c++) call->count[group * channels + c] = total;
    }
}

/* Sums of each group's parts -> of the group. */
static void merge_sums(const struct call *call) {
    const struct plan *p = &call->plan;
    int64_t channels = call->channels;
    for (int64_t group = 0; group < call->groups; group++) {
        double *sums = call->sum_dz + group * channels, *products = call->sum_dz_xhat + group * channels;
        const double *part = call->partial + group * p->parts * 2 * channels;
        memcpy(sums, part, (size_t)channels * sizeof(double));
        memcpy(products, part + channels, (size_t)channels * sizeof(double));
        for (int64_t k = 1; k < p->parts; k++)
            for (int64_t c = 0; c < channels; c++) {
                sums[c] += part[2 * k * channels + c];
                products[c] += part[(2 * k + 1) * channels + c];
            }
    }
}

/* ---- running statistics ---- */

enum { AT_ONCE = 256 }; /* channels for which there is memory on the stack */

static int all_finite(const struct call *call) {
    double worst = 0; /* nan or inf times 0 is nan, which stays */
    for (int64_t c = 0; c < call->channels; c++) worst += call->mean[c] * 0 + call->m2[c] * 0;
    return worst == 0;
}

/* running += momentum * (batch - running), the variance divided by n - 1; rounded once. A channel of fewer than two
   values keeps its own. */
static void update_running(const struct call *call) {
    double old[AT_ONCE], keep = 1 - call->momentum;
    if (call->count[0] <= 1) return;
    for (int64_t first = 0; first < call->channels; first += AT_ONCE) {
        int64_t number = least(AT_ONCE, call->channels - first);
        double share = call->momentum / (call->count[0] - 1);
        read_vector(call->running_mean, 0, first, number, 0, old);
        for (int64_t c = 0; c < number; c++) old[c] = old[c] * keep + call->mean[first + c] * call->momentum;
        write_vector(call->running_mean, first, number, old);
        read_vector(call->running_var, 0, first, number, 1, old);
        for (int64_t c = 0; c < number; c++) old[c] = old[c] * keep + call->m2[first + c] * share;
        write_vector(call->running_var, first, number, old);
    }
}

/* ---- threads ---- */

/* The next item for a thread, from the last to the first if so asked; -1 when all are taken.

   Each thread has a queue of items that lie one after the other, and takes the same ones when all are gone through again:
   what it has read is in its own cache. In neighbouring memory, threads would wait for each other: what one fetches ahead
   is what the other writes. */
static int64_t take(const struct call *call, int thread, int again, int backwards) {
    int64_t items = call->plan.items;
    for (int k = 0; k < call->threads; k++) {
        int64_t number = (thread + k) % call->threads, first = items * number / call->threads;
        int64_t size = items * (number + 1) / call->threads - first, turn;
        _Atomic int64_t *taken = again ? &call->queues[number].taken_again : &call->queues[number].taken;
        if (atomic_load_explicit(taken, memory_order_relaxed) >= size) continue;
        turn = atomic_fetch_add(taken, 1);
        if (turn < size) return first + (backwards ? size - 1 - turn : turn);
    }
    return -1;
}

/* Whether this thread, which finished `own` items, is the one that finished the last of all. */
static int is_last(struct call *call, int64_t own) {
    return own > 0 && atomic_fetch_add(&call->finished, own) + own == call->plan.items;
}

/* Until the thread that finished last has merged what all found; lets others run if that takes long. */
static void wait_until_merged(struct call *call) {
    for (int64_t turns = 1; atomic_load(&call->ready) == 0; turns++) {
#if STEADYNORM_X86
        _mm_pause();
#endif
        if (turns % 1024 == 0) steadynorm_give_way();
    }
}

/* ---- the mask ---- */

static int64_t real(const uint8_t *mask, int64_t number) {
    int64_t total = 0;
    for (int64_t j = 0; j < number; j++) total += mask[j];
    return total;
}

/* The rows of a part of a tile. */
struct share {
    int64_t group, tile, part, begin, end; /* rows [begin, end) */
    int64_t first, channels;               /* the tile's channels, of the tensor's */
};

static struct share share_of(const struct call *call, int64_t item) {
    const struct plan *p = &call->plan;
    struct share s;
    s.part = item % p->parts;
    s.tile = item / p->parts % p->tiles;
    s.group = item / (p->parts * p->tiles);
    s.begin = p->rows * s.part / p->parts;
    s.end = p->rows * (s.part + 1) / p->parts;
    s.first = s.tile * p->channels;
    s.channels = least(p->channels, call->channels - s.first);
    return s;
}

/* Positions of an example from a row of runs on, and how many. */
static int64_t piece_width(const struct call *call, int64_t piece) {
    const struct plan *p = &call->plan;
    return piece == p->pieces - 1 ? call->length - piece * p->width : p->width;
}

/* Real values of each channel in a share. */
static int64_t count_share(const struct call *call, const struct share *s) {
    const struct plan *p = &call->plan;
    int64_t first, end, whole = call->examples * call->length;
    if (p->runs) {
        first = s->begin / p->pieces * call->length + s->begin % p->pieces * p->width;
        end = s->end / p->pieces * call->length + s->end % p->pieces * p->width;
    } else {
        first = s->begin * (p->stride / call->channels);
        end = least(s->end * (p->stride / call->channels), whole);
    }
    return call->mask == NULL ? end - first : real(call->mask + s->group * whole + first, end - first);
}
