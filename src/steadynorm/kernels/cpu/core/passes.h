/* The two passes over a tensor of one dtype: each thread takes items, walks over their rows, and has loops do the
   arithmetic. Included once per dtype.

   Where tiles have one part, an item is measured and normalized while it is in cache. Else all items are measured,
   whoever finishes last merges what they found, and then all are normalized. */

#include "loops.h"

enum { N(BLOCK) = 32 }; /* rows, or additions to a lane, that are summed in float32 before float64 takes over */
#define BLOCK N(BLOCK)

/* Does `number` rows from the first on: runs of as many channels, or rows of columns. */
typedef void N(loop)(const struct N(row) *first, int64_t number, int64_t width, struct N(coefficients) given,
                     struct N(how) how, int streams, REAL *sums, REAL *products);

#include "variants.h"

static int N(form)(const struct call *call) {
    if (call->activation == NONE) return FORM_NONE;
    if (call->activation == RELU) return FORM_RELU;
    return call->activation <= LEAKY_RELU ? FORM_BENT : FORM_SMOOTH;
}

/* Whether the gradient needs z, and z the residual. */
static int N(reads_residual)(const struct call *call) {
    return call->residual != NULL && call->activation != NONE && call->signs == NULL;
}

/* Vectors of signs that a run of L values has. */
static int64_t N(run_slots)(const struct call *call) {
    const struct plan *p = &call->plan;
    return (p->pieces - 1) * (p->width / W) + sign_slots(p->longest, W);
}

/* Whether what is written may go past the caches: every row must begin with a vector. A run may also be so long that what
   it has of a vector at its ends, which goes to the caches first, matters little. */
static int N(may_stream)(const struct call *call) {
    uintptr_t begins = (uintptr_t)call->y | (uintptr_t)call->dx | (uintptr_t)call->dresidual;
    int64_t group = call->groups > 1 ? call->examples * call->channels * call->length : 0;
    if (!call->streams || (call->plan.runs && call->length * (int64_t)sizeof(STORED) >= STREAMED_RUN)) return call->streams;
    begins |= (uintptr_t)((call->plan.stride | group) * (int64_t)sizeof(STORED));
    return begins % sizeof(N(memory)) == 0;
}

/* What a thread works with: lines of memory in the call's scratch. */
struct N(work) {
    struct N(how) how;
    N(loop) *loop, *keeping_loop; /* of the walk that is on; the second looks at `keep` in any case */
    int streams;
    struct N(coefficients) given;
    REAL *mean, *scale, *shift, *pull, *push; /* one number a channel (runs) or a column */
    REAL *sums, *products;                    /* float32 sums, W lanes a channel or one a column */
    double *wide_sums, *wide_products;        /* what these were when float64 took over */
    double *m, *v, *rest, *invstd, *a, *b, *s, *q; /* per channel of a tile */
    int64_t tile;                             /* the tile that the coefficients are of, counted over groups; -1 for none */
    INT *keep;                                /* as wide as the longest row */
    int64_t lines;                            /* numbers of a line of columns or channels */
};

static int64_t N(line_length)(const struct plan *p) {
    return ceil_div(p->runs ? p->channels : p->width, W) * W + W;
}

static int64_t N(scratch)(const struct call *call) {
    const struct plan *p = &call->plan;
    int64_t line = N(line_length)(p), lanes = p->runs ? p->channels * W : line;
    int64_t keep = call->mask != NULL ? ceil_div(p->longest, W) * W + W : 0;
    return (5 * line + 2 * lanes) * (int64_t)sizeof(REAL) + (2 * lanes + 8 * (p->channels + W)) * (int64_t)sizeof(double) +
           keep * (int64_t)sizeof(INT) + 24 * 64;
}

static void *N(line)(char **place, int64_t number, size_t size) {
    char *line = *place;
    *place += ceil_div(number * (int64_t)size, 64) * 64;
    return line;
}

static void N(begin_work)(struct call *call, char *scratch, struct N(work) *w) {
    const struct plan *p = &call->plan;
    int64_t lanes;
    double **wide[] = {&w->m, &w->v, &w->rest, &w->invstd, &w->a, &w->b, &w->s, &w->q};
    memset(w, 0, sizeof *w);
    w->tile = -1;
    w->lines = N(line_length)(p);
    lanes = p->runs ? p->channels * W : w->lines;
    w->mean = N(line)(&scratch, w->lines, sizeof(REAL));
    w->scale = N(line)(&scratch, w->lines, sizeof(REAL));
    w->shift = N(line)(&scratch, w->lines, sizeof(REAL));
    w->pull = N(line)(&scratch, w->lines, sizeof(REAL));
    w->push = N(line)(&scratch, w->lines, sizeof(REAL));
    w->sums = N(line)(&scratch, lanes, sizeof(REAL));
    w->products = N(line)(&scratch, lanes, sizeof(REAL));
    w->wide_sums = N(line)(&scratch, lanes, sizeof(double));
    w->wide_products = N(line)(&scratch, lanes, sizeof(double));
    for (int k = 0; k < 8; k++) *wide[k] = N(line)(&scratch, p->channels + W, sizeof(double));
    w->keep = (INT *)scratch;
    w->given = (struct N(coefficients)){w->mean, w->scale, w->shift, w->pull, w->push};
    w->how.activation = call->activation;
    w->how.slope = (REAL)call->slope;
    w->how.varies = call->varies;
    w->how.stride = p->stride;
    w->how.sign_stride = (p->runs ? N(run_slots)(call) : p->tiles * sign_slots(p->width, W)) * SIGN_BYTES;
}

/* The loop of the walk that comes next. */
static void N(set_loop)(const struct call *call, struct N(work) *w, int what, int form, int residual, int signs) {
    int columns = !call->plan.runs;
    w->how.form = form;
    w->how.has_residual = residual;
    w->how.has_signs = signs;
    w->how.has_keep = 1;
    w->keeping_loop = N(loop_of)(what, columns, &w->how);
    w->how.has_keep = call->mask != NULL && !(columns && call->plan.stride == call->channels);
    w->loop = N(loop_of)(what, columns, &w->how);
    w->streams = 0;
}

/* ---- from a value a channel to a number a column, and back ---- */

static void N(spread)(const struct call *call, const struct share *s, const double *values, REAL *line) {
    const struct plan *p = &call->plan;
    int64_t period = s->channels * p->inner;
    if (p->runs || p->inner == 1) {
        for (int64_t c = 0; c < s->channels; c++) line[c] = (REAL)values[c];
    } else {
        for (int64_t c = 0, j = 0; c < s->channels; c++)
            for (int64_t k = 0; k < p->inner; k++) line[j++] = (REAL)values[c];
    }
    if (!p->runs && p->tiles == 1)
        for (int64_t j = period; j < p->width; j++) line[j] = line[j - period];
}

static void N(gather)(const struct call *call, const struct share *s, const double *restrict columns,
                      double *restrict totals) {
    const struct plan *p = &call->plan;
    int64_t period = s->channels * p->inner, width = p->tiles == 1 ? p->width : period;
    for (int64_t c = 0; c < s->channels; c++) totals[c] = 0;
    for (int64_t first = 0; first < width; first += period) {
        const double *from = columns + first;
        if (p->inner == 1)
            for (int64_t c = 0; c < period; c++) totals[c] += from[c];
        else
            for (int64_t c = 0; c < s->channels; c++)
                for (int64_t k = 0; k < p->inner; k++) totals[c] += from[c * p->inner + k];
    }
}

/* Adds what has been summed to the float64 totals, and clears it. */
static void N(settle)(REAL *restrict sums, double *restrict wide, int64_t number) {
    for (int64_t j = 0; j < number; j++) wide[j] += sums[j];
    memset(sums, 0, (size_t)number * sizeof(REAL));
}

/* ---- walks ---- */

/* Where values from `offset` on lie in each tensor. */
static struct N(row) N(row_at)(const struct call *call, int64_t offset, int64_t slot, const INT *keep) {
    struct N(row) row;
    row.x = (const STORED *)call->x + offset;
    row.dy = call->dy ? (const STORED *)call->dy + offset : NULL;
    row.residual = call->residual ? (const STORED *)call->residual + offset : NULL;
    row.y = call->y ? (STORED *)call->y + offset : NULL;
    row.dx = call->dx ? (STORED *)call->dx + offset : NULL;
    row.dresidual = call->dresidual ? (STORED *)call->dresidual + offset : NULL;
    row.signs = call->signs ? call->signs + slot * SIGN_BYTES : NULL;
    row.keep = keep;
    return row;
}

/* Has a loop do `number` rows of columns. */
static void N(do_rows)(struct N(work) *w, const struct N(row) *first, int64_t number, int64_t width) {
    struct N(how) how = w->how;
    struct N(narrow) narrow;
    if (width >= W) {
        w->loop(first, number, width, w->given, how, w->streams, w->sums, w->products);
        return;
    }
    how.has_keep = 1;
    for (struct N(row) row = *first; number > 0; number--, N(next_row)(&row, &how)) {
        if (!w->how.has_keep) row.keep = NULL;
        N(widen)(&row, width, &narrow);
        w->keeping_loop(&narrow.row, 1, W, w->given, how, 0, w->sums, w->products);
        N(copy_back)(&narrow, width, &row);
    }
}

/* Rows of one channel. Sums are lanes of each channel of the tile; backwards: from the last example to the first. */
static void N(walk_runs)(const struct call *call, const struct share *s, struct N(work) *w, int sums, int backwards) {
    const struct plan *p = &call->plan;
    int64_t lanes = s->channels * W, added = 0, per_row = p->longest / W / 4 + 2;
    for (int64_t k = s->begin; k < s->end; k++) {
        int64_t place = backwards ? s->begin + s->end - 1 - k : k, piece = place % p->pieces;
        int64_t example = s->group * call->examples + place / p->pieces, width = piece_width(call, piece);
        int64_t run = example * call->channels + s->first;
        struct N(row) row = N(row_at)(call, run * call->length + piece * p->width,
                                      run * N(run_slots)(call) + piece * (p->width / W), w->keep);
        if (call->mask != NULL) {
            const uint8_t *mask = call->mask + example * call->length + piece * p->width;
            for (int64_t j = 0; j < width; j++) w->keep[j] = -(INT)mask[j];
        }
        w->loop(&row, s->channels, width, w->given, w->how, w->streams, w->sums, w->products);
        added += per_row;
        if (sums && added >= BLOCK) {
            N(settle)(w->sums, w->wide_sums, lanes);
            N(settle)(w->products, w->wide_products, lanes);
            added = 0;
        }
    }
}

/* Which columns of a row of several positions are real. */
static void N(keep_columns)(const struct call *call, const struct share *s, const uint8_t *mask, int64_t width, INT *keep) {
    const struct plan *p = &call->plan;
    int64_t period = s->channels * p->inner;
    for (int64_t j = 0; j < width; j += period, mask += p->inner) {
        INT all = -(INT)*mask;
        if (p->inner == 1) /* whole vectors: what is beyond is written next, or is room */
            for (int64_t c = 0; c < period; c += W) N(set_integers)(keep + j + c, all);
        else
            for (int64_t c = 0; c < s->channels; c++)
                for (int64_t k = 0; k < p->inner; k++) keep[j + c * p->inner + k] = -(INT)mask[k];
    }
}

/* Writes zeros to rows that have no real element. */
static void N(clear)(const struct N(row) *row, int64_t number, int64_t width, int64_t stride) {
    size_t size = (size_t)width * sizeof(STORED);
    for (int64_t k = 0; k < number; k++) {
        if (row->y) memset(row->y + k * stride, 0, size);
        if (row->dx) memset(row->dx + k * stride, 0, size);
        if (row->dresidual) memset(row->dresidual + k * stride, 0, size);
    }
}

/* Rows [begin, end) of columns, `width` values each. */
static void N(walk_block)(const struct call *call, const struct share *s, struct N(work) *w, int sums, int64_t begin,
                          int64_t end, int64_t width) {
    const struct plan *p = &call->plan;
    int64_t positions = p->stride / call->channels, size = call->examples * call->channels * call->length;
    int64_t slots = p->tiles * sign_slots(p->width, W);
    for (int64_t place = begin, next; place < end; place = next) {
        struct N(row) row = N(row_at)(call, s->group * size + place * p->stride + s->tile * p->width,
                                      (s->group * p->rows + place) * slots + s->tile * sign_slots(p->width, W), w->keep);
        next = end;
        if (call->mask != NULL) {
            const uint8_t *mask = call->mask + s->group * call->examples * call->length + place * positions;
            next = place + 1;
            if (positions > 1) {
                N(keep_columns)(call, s, mask, width, w->keep);
            } else {
                while (next < end && mask[next - place] == *mask) next++;
                if (!*mask) {
                    if (!sums) N(clear)(&row, next - place, width, p->stride);
                    continue;
                }
            }
        }
        N(do_rows)(w, &row, next - place, width);
    }
}

/* Rows [begin, end) of columns, full ones, but for the last row of all, which may be short. */
static void N(walk_rows)(const struct call *call, const struct share *s, struct N(work) *w, int sums, int64_t begin,
                         int64_t end) {
    const struct plan *p = &call->plan;
    int64_t beyond = end * p->stride - call->examples * call->channels * call->length;
    int64_t full = p->tiles == 1 ? p->width : s->channels * p->inner;
    if (beyond > 0) {
        N(walk_block)(call, s, w, sums, begin, end - 1, full);
        N(walk_block)(call, s, w, sums, end - 1, end, p->width - beyond);
    } else {
        N(walk_block)(call, s, w, sums, begin, end, full);
    }
}

/* Rows of several channels. */
static void N(walk_columns)(const struct call *call, const struct share *s, struct N(work) *w, int sums, int backwards) {
    int64_t blocks = ceil_div(s->end - s->begin, BLOCK);
    for (int64_t k = 0; k < blocks; k++) {
        int64_t begin = s->begin + (backwards ? blocks - 1 - k : k) * BLOCK;
        N(walk_rows)(call, s, w, sums, begin, least(begin + BLOCK, s->end));
        if (sums) {
            N(settle)(w->sums, w->wide_sums, w->lines);
            N(settle)(w->products, w->wide_products, w->lines);
        }
    }
}

static void N(walk)(const struct call *call, const struct share *s, struct N(work) *w, int sums, int backwards) {
    if (call->plan.runs)
        N(walk_runs)(call, s, w, sums, backwards);
    else
        N(walk_columns)(call, s, w, sums, backwards);
}

static int64_t N(summed_numbers)(const struct call *call, const struct share *s, const struct N(work) *w) {
    return call->plan.runs ? s->channels * W : w->lines;
}

static void N(clear_sums)(const struct call *call, const struct share *s, struct N(work) *w) {
    size_t number = (size_t)N(summed_numbers)(call, s, w);
    memset(w->sums, 0, number * sizeof(REAL));
    memset(w->products, 0, number * sizeof(REAL));
    memset(w->wide_sums, 0, number * sizeof(double));
    memset(w->wide_products, 0, number * sizeof(double));
}

/* What loops have summed, a value a channel. */
static void N(read_sums)(const struct call *call, const struct share *s, struct N(work) *w, double *sums, double *products) {
    int64_t number = N(summed_numbers)(call, s, w);
    N(settle)(w->sums, w->wide_sums, number);
    N(settle)(w->products, w->wide_products, number);
    if (!call->plan.runs) {
        N(gather)(call, s, w->wide_sums, sums);
        N(gather)(call, s, w->wide_products, products);
        return;
    }
    for (int64_t c = 0; c < s->channels; c++) {
        double total = 0, more = 0;
        for (int lane = 0; lane < W; lane++) {
            total += w->wide_sums[c * W + lane];
            more += w->wide_products[c * W + lane];
        }
        sums[c] = total;
        products[c] = more;
    }
}

static void N(sum_up)(const struct call *call, const struct share *s, struct N(work) *w, double *sums, double *products) {
    N(clear_sums)(call, s, w);
    N(walk)(call, s, w, 1, 0);
    N(read_sums)(call, s, w, sums, products);
}

/* ---- moments ---- */

/* A value near the mean of each channel of a share, by a few rows spread over it; 0 where none of them is real.
   Of a run, as many values as a vector of any instruction set has. */
static void N(sample)(const struct call *call, const struct share *s, struct N(work) *w, double *near) {
    const struct plan *p = &call->plan;
    int64_t positions = p->runs ? 2 : p->stride / call->channels; /* a run counts as two: its values are alike */
    int64_t rows = s->end - s->begin, count = 0;
    int64_t samples = most(least(rows, 4), least(SAMPLES / positions, rows / 8));
    int64_t step = rows / samples;
    N(clear_sums)(call, s, w);
    memset(w->mean, 0, (size_t)w->lines * sizeof(REAL));
    for (int64_t k = 0; k < samples; k++) {
        struct share one = *s;
        one.begin = s->begin + step * k;
        one.end = one.begin + 1;
        if (!p->runs) {
            count += count_share(call, &one);
            N(walk_rows)(call, &one, w, 1, one.begin, one.end);
            continue;
        }
        int64_t example = s->group * call->examples + one.begin / p->pieces, place = one.begin % p->pieces * p->width;
        struct N(row) row = N(row_at)(call, (example * call->channels + s->first) * call->length + place, 0, w->keep);
        if (call->mask != NULL) {
            const uint8_t *mask = call->mask + example * call->length + place;
            for (int64_t j = 0; j < RUN_SAMPLE; j++) w->keep[j] = -(INT)mask[j];
            count += real(mask, RUN_SAMPLE);
        } else {
            count += RUN_SAMPLE;
        }
        w->loop(&row, s->channels, RUN_SAMPLE, w->given, w->how, 0, w->sums, w->products);
    }
    N(read_sums)(call, s, w, near, w->q);
    for (int64_t c = 0; c < s->channels; c++) near[c] /= count > 1 ? (double)count : 1.0;
}

/* Writes mean and m2 of a share; gives their count.

   Sums are taken of distances from a value near the mean, so that nothing cancels: from that of a sample, or, where that
   proves to be far from the mean of all, once more from that. */
static double N(measure)(const struct call *call, const struct share *s, struct N(work) *w, double *mean, double *m2) {
    double count = (double)count_share(call, s), number = count > 1 ? count : 1, *near = w->rest;
    N(set_loop)(call, w, N(MOMENTS), FORM_NONE, 0, 0);
    N(sample)(call, s, w, mean);
    for (int turn = 0; turn < 2; turn++) {
        int far = 0;
        for (int64_t c = 0; c < s->channels; c++) near[c] = fabs((REAL)mean[c]) <= REAL_MAX ? (REAL)mean[c] : 0;
        N(spread)(call, s, near, w->mean);
        N(sum_up)(call, s, w, w->s, w->q);
        for (int64_t c = 0; c < s->channels; c++) {
            double distance = w->s[c] / number, around = w->q[c] - w->s[c] * distance;
            mean[c] = near[c] + distance;
            m2[c] = around < 0 ? 0 : around;
            far |= distance * distance * number > 2 * m2[c];
        }
        if (!far) break;
    }
    return count;
}

/* ---- what normalizes ---- */

/* Whether the coefficients are not those of this share yet, which they are from now on. Parts of a tile share
   them, and a thread takes parts one after the other. */
static int N(is_new)(const struct call *call, const struct share *s, struct N(work) *w) {
    int64_t tile = s->group * call->plan.tiles + s->tile;
    int new = w->tile != tile;
    w->tile = tile;
    return new;
}

/* Coefficients of a share from mean w->m and variance w->v. Distances are taken from the mean as REAL holds it, or, where
   it is near, from 0: that spares a rounding of each value. `rest` is what the mean has beyond; the shift accounts for
   it. */
static void N(prepare)(const struct call *call, const struct share *s, struct N(work) *w) {
    double *origin = w->s, *bias = w->q;
    read_vector(call->weight, s->group, s->first, s->channels, 1, w->a);
    read_vector(call->bias, s->group, s->first, s->channels, 0, bias);
    for (int64_t c = 0; c < s->channels; c++) {
        double mean = w->m[c], var = w->v[c], invstd = 1 / sqrt(var + call->eps);
        double from = mean * mean <= var ? 0 : (double)(REAL)mean, rest = mean - from, scale = w->a[c] * invstd;
        w->invstd[c] = invstd;
        origin[c] = from;
        w->rest[c] = rest;
        w->a[c] = scale;
        w->b[c] = bias[c] - rest * scale;
    }
    N(spread)(call, s, origin, w->mean);
    N(spread)(call, s, w->a, w->scale);
    N(spread)(call, s, w->b, w->shift);
}

static void N(read_statistics)(const struct call *call, const struct share *s, struct N(work) *w) {
    read_vector(call->given_mean, s->group, s->first, s->channels, 0, w->m);
    read_vector(call->given_var, s->group, s->first, s->channels, 1, w->v);
}

/* ---- forward ---- */

static void N(apply)(const struct call *call, const struct share *s, struct N(work) *w, int again) {
    N(set_loop)(call, w, N(APPLY), N(form)(call), call->residual != NULL, call->signs != NULL);
    w->streams = N(may_stream)(call);
    N(walk)(call, s, w, 0, again);
}

/* Moments, output, or both. */
static void N(forward)(struct call *call, int thread, char *scratch) {
    const struct plan *p = &call->plan;
    struct N(work) w;
    int64_t own = 0, item, channels = call->channels;
    int at_once = p->parts == 1 || !call->measures, backwards = call->backwards && !call->measures;
    N(begin_work)(call, scratch, &w);
    while ((item = take(call, thread, 0, backwards)) >= 0) {
        struct share s = share_of(call, item);
        if (call->measures) {
            double count = N(measure)(call, &s, &w, w.m, w.v);
            int64_t place = s.group * channels + s.first;
            double *mean = call->mean + place, *m2 = call->m2 + place;
            if (p->parts > 1) {
                mean = call->partial + (s.group * p->parts + s.part) * 2 * channels + s.first;
                m2 = mean + channels;
                call->partial_count[s.group * p->parts + s.part] = count;
            } else {
                for (int64_t c = 0; c < s.channels; c++) call->count[place + c] = count;
            }
            memcpy(mean, w.m, (size_t)s.channels * sizeof(double));
            memcpy(m2, w.v, (size_t)s.channels * sizeof(double));
            for (int64_t c = 0; c < s.channels; c++) w.v[c] /= count > 1 ? count : 1;
            if (call->applies && at_once) N(prepare)(call, &s, &w);
        } else if (N(is_new)(call, &s, &w)) {
            N(read_statistics)(call, &s, &w);
            N(prepare)(call, &s, &w);
        }
        if (call->applies && at_once) N(apply)(call, &s, &w, call->measures);
        own++;
    }
    if (!call->measures) return;
    if (is_last(call, own)) {
        if (p->parts > 1) merge_moments(call);
        for (int64_t c = 0; call->variance != NULL && c < call->groups * channels; c++)
            call->variance[c] = call->m2[c] / (call->count[c] > 1 ? call->count[c] : 1);
        if (call->running_mean.data != NULL) {
            call->infinite = !all_finite(call);
            if (!call->infinite || !call->guarded) update_running(call);
        }
        atomic_store(&call->ready, 1);
    }
    if (at_once || !call->applies) return;
    wait_until_merged(call);
    while ((item = take(call, thread, 1, call->backwards)) >= 0) {
        struct share s = share_of(call, item);
        int64_t place = s.group * channels + s.first;
        if (N(is_new)(call, &s, &w)) {
            memcpy(w.m, call->mean + place, (size_t)s.channels * sizeof(double));
            for (int64_t c = 0; c < s.channels; c++)
                w.v[c] = call->m2[place + c] / (call->count[place + c] > 1 ? call->count[place + c] : 1);
            N(prepare)(call, &s, &w);
        }
        N(apply)(call, &s, &w, 1);
    }
}

/* ---- backward ---- */

/* Coefficients of dx, after `prepare`: dx = dz * scale + d * pull + push, where pull and push are how
   the statistics follow x. */
static void N(prepare_pull)(const struct call *call, const struct share *s, struct N(work) *w) {
    int64_t place = s->group * call->channels + s->first;
    double *pull = w->s, *push = w->q;
    if (!call->varies) return;
    for (int64_t c = 0; c < s->channels; c++) {
        double count = call->count[place + c] > 1 ? call->count[place + c] : 1;
        double tilt = call->sum_dz_xhat[place + c] / count * w->invstd[c];
        pull[c] = -tilt * w->a[c];
        push[c] = (tilt * w->rest[c] - call->sum_dz[place + c] / count) * w->a[c];
    }
    N(spread)(call, s, pull, w->pull);
    N(spread)(call, s, push, w->push);
}

/* dx and dresidual of a share, from its coefficients. */
static void N(pull)(const struct call *call, const struct share *s, struct N(work) *w) {
    N(set_loop)(call, w, N(PULL), N(form)(call), N(reads_residual)(call), call->signs != NULL);
    w->streams = N(may_stream)(call);
    N(walk)(call, s, w, 0, call->measures);
}

/* The sums over gradients, dx, or both. */
static void N(backward)(struct call *call, int thread, char *scratch) {
    const struct plan *p = &call->plan;
    struct N(work) w;
    int64_t own = 0, item, channels = call->channels;
    int at_once = p->parts == 1 || !call->measures, backwards = call->backwards && !call->measures;
    N(begin_work)(call, scratch, &w);
    while ((item = take(call, thread, 0, backwards)) >= 0) {
        struct share s = share_of(call, item);
        if (N(is_new)(call, &s, &w)) {
            N(read_statistics)(call, &s, &w);
            N(prepare)(call, &s, &w);
            if (!call->measures) N(prepare_pull)(call, &s, &w);
        }
        if (call->measures) {
            int64_t place = s.group * channels + s.first;
            double *sums = call->sum_dz + place, *products = call->sum_dz_xhat + place;
            if (p->parts > 1) {
                sums = call->partial + (s.group * p->parts + s.part) * 2 * channels + s.first;
                products = sums + channels;
            }
            N(set_loop)(call, &w, N(PRODUCTS), N(form)(call), N(reads_residual)(call), call->signs != NULL);
            N(sum_up)(call, &s, &w, w.s, w.q);
            for (int64_t c = 0; c < s.channels; c++) {
                sums[c] = w.s[c];
                products[c] = (w.q[c] - w.rest[c] * w.s[c]) * w.invstd[c];
            }
        }
        if (call->applies && at_once) {
            if (call->measures) N(prepare_pull)(call, &s, &w);
            N(pull)(call, &s, &w);
        }
        own++;
    }
    if (!call->measures) return;
    if (is_last(call, own)) {
        if (p->parts > 1) merge_sums(call);
        write_vector(call->dweight, 0, channels, call->sum_dz_xhat);
        write_vector(call->dbias, 0, channels, call->sum_dz);
        atomic_store(&call->ready, 1);
    }
    if (at_once || !call->applies) return;
    wait_until_merged(call);
    for (int64_t pulled = -1; (item = take(call, thread, 1, call->backwards)) >= 0; pulled = w.tile) {
        struct share s = share_of(call, item);
        int new = N(is_new)(call, &s, &w);
        if (new) {
            N(read_statistics)(call, &s, &w);
            N(prepare)(call, &s, &w);
        }
        if (new || pulled < 0) N(prepare_pull)(call, &s, &w);
        N(pull)(call, &s, &w);
    }
}

/* ---- signs ---- */

/* Writes to y, bool of x's shape and order, where the activation's derivative is 1. */
static void N(unpack)(const struct call *call) {
    const struct plan *p = &call->plan;
    uint8_t *all = call->y;
    for (int64_t item = 0; item < p->items; item++) {
        struct share s = share_of(call, item);
        int64_t size = call->examples * call->channels * call->length;
        for (int64_t place = s.begin; place < s.end; place++)
            for (int64_t c = 0; c < (p->runs ? s.channels : 1); c++) {
                int64_t offset, slot, width;
                if (p->runs) {
                    int64_t piece = place % p->pieces, run = place / p->pieces * call->channels + s.first + c;
                    offset = run * call->length + piece * p->width;
                    slot = run * N(run_slots)(call) + piece * (p->width / W);
                    width = piece_width(call, piece);
                } else {
                    offset = place * p->stride + s.tile * p->width;
                    slot = (place * p->tiles + s.tile) * sign_slots(p->width, W);
                    width = least(p->tiles == 1 ? p->width : s.channels * p->inner, size - offset);
                }
                for (int64_t j = 0; j < width; j++) {
                    /* the last vector of a row begins where it ends with the row, and its bits count */
                    int64_t last = j - j % W + W > width && width >= W;
                    int64_t lane = last ? j - (width - W) : j % W;
                    all[offset + j] = call->signs[(slot + j / W) * SIGN_BYTES + lane / 8] >> lane % 8 & 1;
                }
            }
    }
}

#undef BLOCK
#undef V
#undef I
#undef W
#undef TRUTH
