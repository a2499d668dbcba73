/* Loops over rows of memory, in the order of memory: what the core spends its time in. Included once per dtype.

   With d = x - mean: z = d * scale + shift + residual, y = activation(z). A loop over a run has one channel, whose
   coefficients are numbers; a loop over columns has a coefficient a column. Columns are not summed several rows at once:
   memory is read fastest in order, and then decides.

   A vector may be partial: the last one of a row overlaps the one before it, and `keep` leaves out what has been
   counted; a row that is narrower than a vector is copied to where there is room for one. `keep` holds integers as wide
   as the numbers, with all bits set where an element is real and none where it is not. */

#include "vector.h"
/* after the vectors */
#include "activations.h"

/* What a channel, or every column, is computed with. For columns, addresses of one number a column. */
struct N(coefficients) {
    const REAL *mean, *scale, *shift, *pull, *push;
};

/* Where a row of each tensor begins; NULL where there is none. */
struct N(row) {
    const STORED *x, *dy, *residual;
    STORED *y, *dx, *dresidual;
    uint8_t *signs;
    const INT *keep;
};

/* What is the same for all rows of a call. `form` and the rest of the flags are constants where loops are compiled. */
struct N(how) {
    int form, has_residual, has_keep, has_signs, varies;
    int activation;
    REAL slope;
    int64_t stride, sign_stride; /* to the next row: values, and bytes of signs */
};

/* z and what it is made of. */
INLINE V N(pre_activation)(const struct N(row) *row, int64_t j, V d, V scale, V shift, int has_residual) {
    V z = N(multiply_add)(d, scale, shift); /* the same bits in every loop, as its sign decides in both directions */
    return has_residual ? z + N(load)(row->residual + j) : z;
}

/* ---- one vector of one row ---- */

INLINE void N(add_moments)(const STORED *x, V mean, I keep, int masked, V *sum, V *squares) {
    V d = N(load)(x) - mean;
    if (masked) d = N(kept)(d, keep);
    *sum += d;
    *squares = N(multiply_add)(d, d, *squares);
}

/* dz of one vector. */
INLINE V N(gradient)(const struct N(row) *row, int64_t j, int64_t slot, V d, V scale, V shift, I keep, int masked,
                     struct N(how) how) {
    V dy = N(load)(row->dy + j), dz;
    if (how.has_signs) {
        TRUTH bent = N(neither)(N(signs)(row->signs + slot * SIGN_BYTES));
        dz = N(bent)(bent, dy, how.form, how.slope);
    } else if (how.form == FORM_NONE) {
        dz = dy;
    } else {
        V z = N(pre_activation)(row, j, d, scale, shift, how.has_residual);
        dz = N(activate_grad)(dy, z, how.form, how.activation, how.slope);
    }
    return masked ? N(kept)(dz, keep) : dz;
}

INLINE void N(add_products)(const struct N(row) *row, int64_t j, int64_t slot, V mean, V scale, V shift, I keep,
                            int masked, struct N(how) how, V *sum, V *products) {
    V d = N(load)(row->x + j) - mean;
    if (masked) d = N(kept)(d, keep);
    V dz = N(gradient)(row, j, slot, d, scale, shift, keep, masked, how);
    *sum += dz;
    *products = N(multiply_add)(dz, d, *products);
}

INLINE void N(put)(STORED *p, V v, int streams) {
    if (streams)
        N(stream)(p, v);
    else
        N(store)(p, v);
}

INLINE void N(apply_one)(const struct N(row) *row, int64_t j, int64_t slot, V mean, V scale, V shift, I keep, int masked,
                         struct N(how) how, int streams) {
    TRUTH bent = (TRUTH){0};
    V z = N(pre_activation)(row, j, N(load)(row->x + j) - mean, scale, shift, how.has_residual);
    V y = N(activate)(z, how.form, how.activation, how.slope, &bent);
    if (masked) y = N(kept)(y, keep);
    if (how.has_signs) N(set_signs)(row->signs + slot * SIGN_BYTES, N(neither)(bent));
    N(put)(row->y + j, y, streams);
}

INLINE void N(pull_one)(const struct N(row) *row, int64_t j, int64_t slot, V mean, V scale, V shift, V pull, V push,
                        I keep, int masked, struct N(how) how, int streams) {
    V d = N(load)(row->x + j) - mean;
    V dz = N(gradient)(row, j, slot, d, scale, shift, keep, masked, how);
    if (row->dresidual != NULL) N(put)(row->dresidual + j, dz, streams);
    if (row->dx == NULL) return;
    V dx = how.varies ? N(multiply_add)(dz, scale, N(multiply_add)(d, pull, push)) : dz * scale;
    if (masked) dx = N(kept)(dx, keep);
    N(put)(row->dx + j, dx, streams);
}

/* ---- rows narrower than a vector: in memory of a vector's size ---- */

struct N(narrow) {
    STORED x[W], dy[W], residual[W], y[W], dx[W], dresidual[W];
    INT keep[W];
    struct N(row) row;
};

/* A copy of a row of `width` values; `keep` has what is beyond it cleared. */
static void N(widen)(const struct N(row) *from, int64_t width, struct N(narrow) *to) {
    size_t size = (size_t)width * sizeof(STORED);
    memset(to, 0, sizeof *to);
    if (from->x) memcpy(to->x, from->x, size);
    if (from->dy) memcpy(to->dy, from->dy, size);
    if (from->residual) memcpy(to->residual, from->residual, size);
    for (int64_t j = 0; j < width; j++) to->keep[j] = from->keep ? from->keep[j] : (INT)-1;
    to->row = (struct N(row)){to->x, to->dy, to->residual, to->y, from->dx ? to->dx : NULL,
                              from->dresidual ? to->dresidual : NULL, from->signs, to->keep};
}

static void N(copy_back)(const struct N(narrow) *from, int64_t width, const struct N(row) *to) {
    size_t size = (size_t)width * sizeof(STORED);
    if (to->y) memcpy(to->y, from->y, size);
    if (to->dx) memcpy(to->dx, from->dx, size);
    if (to->dresidual) memcpy(to->dresidual, from->dresidual, size);
}

INLINE I N(keep_at)(const INT *keep, int64_t j) { return *(const N(integers) *)(keep + j); }

/* ---- runs: one channel; width >= W ---- */

/* `sums` += d, `squares` += d², lane by lane. */
INLINE void N(moments_of_run)(const STORED *x, const INT *keep, int64_t width, REAL mean, int masked, REAL *sums,
                              REAL *squares) {
    V centre = N(all)(mean), sum = N(numbers)(sums), square = N(numbers)(squares);
    I none = {0};
    int64_t j = 0;
    if (width >= 4 * W) {
        V s[4] = {{0}}, q[4] = {{0}};
        for (; j + 4 * W <= width; j += 4 * W)
            UNROLL for (int k = 0; k < 4; k++)
                N(add_moments)(x + j + k * W, centre, masked ? N(keep_at)(keep, j + k * W) : none, masked, &s[k], &q[k]);
        sum += (s[0] + s[1]) + (s[2] + s[3]);
        square += (q[0] + q[1]) + (q[2] + q[3]);
    }
    for (; j + W <= width; j += W)
        N(add_moments)(x + j, centre, masked ? N(keep_at)(keep, j) : none, masked, &sum, &square);
    if (j < width) {
        I rest = N(lanes_from)(j - (width - W));
        j = width - W;
        N(add_moments)(x + j, centre, masked ? rest & N(keep_at)(keep, j) : rest, 1, &sum, &square);
    }
    N(set_numbers)(sums, sum);
    N(set_numbers)(squares, square);
}

/* `sums` += dz, `products` += dz * d, lane by lane. */
INLINE void N(products_of_run)(const struct N(row) *row, int64_t width, REAL mean, REAL scale, REAL shift,
                               struct N(how) how, REAL *sums, REAL *products) {
    V m = N(all)(mean), a = N(all)(scale), b = N(all)(shift), sum = N(numbers)(sums), product = N(numbers)(products);
    int masked = how.has_keep;
    I none = {0};
    int64_t j = 0, slot = 0;
    if (width >= 4 * W) {
        V s[2] = {{0}}, p[2] = {{0}};
        for (; j + 2 * W <= width; j += 2 * W, slot += 2)
            UNROLL for (int k = 0; k < 2; k++)
                N(add_products)(row, j + k * W, slot + k, m, a, b, masked ? N(keep_at)(row->keep, j + k * W) : none,
                                masked, how, &s[k], &p[k]);
        sum += s[0] + s[1];
        product += p[0] + p[1];
    }
    for (; j + W <= width; j += W, slot++)
        N(add_products)(row, j, slot, m, a, b, masked ? N(keep_at)(row->keep, j) : none, masked, how, &sum, &product);
    if (j < width) {
        I rest = N(lanes_from)(j - (width - W));
        j = width - W;
        N(add_products)(row, j, slot, m, a, b, masked ? rest & N(keep_at)(row->keep, j) : rest, 1, how, &sum, &product);
    }
    N(set_numbers)(sums, sum);
    N(set_numbers)(products, product);
}

/* Values from p on to the next vector in memory that is aligned. */
INLINE int64_t N(unaligned_values)(const STORED *p) {
    uintptr_t size = sizeof(N(memory)), beyond = (uintptr_t)p % size;
    return beyond ? (int64_t)((size - beyond) / sizeof(STORED)) : 0;
}

INLINE void N(apply_run)(const struct N(row) *row, int64_t width, REAL mean, REAL scale, REAL shift, struct N(how) how,
                         int streams) {
    V m = N(all)(mean), a = N(all)(scale), b = N(all)(shift);
    int masked = how.has_keep;
    I none = {0};
    int64_t j = 0, slot = 0;
    if (streams) {
        int64_t first = N(unaligned_values)(row->y);
        if (how.has_signs ? first != 0 : 0) streams = 0; /* a bit's place must not depend on where y lies */
        else if (first) {
            N(apply_one)(row, 0, 0, m, a, b, masked ? N(keep_at)(row->keep, 0) : none, masked, how, 0);
            j = first;
        }
    }
    for (; j + W <= width; j += W, slot++)
        N(apply_one)(row, j, slot, m, a, b, masked ? N(keep_at)(row->keep, j) : none, masked, how, streams);
    if (j < width) {
        j = width - W;
        N(apply_one)(row, j, slot, m, a, b, masked ? N(keep_at)(row->keep, j) : none, masked, how, 0);
    }
}

INLINE void N(pull_run)(const struct N(row) *row, int64_t width, REAL mean, REAL scale, REAL shift, REAL pull, REAL push,
                        struct N(how) how, int streams) {
    V m = N(all)(mean), a = N(all)(scale), b = N(all)(shift), c = N(all)(pull), e = N(all)(push);
    int masked = how.has_keep;
    I none = {0};
    int64_t j = 0, slot = 0;
    if (streams) {
        int64_t first = N(unaligned_values)(row->dx);
        if (row->dx == NULL || (row->dresidual && N(unaligned_values)(row->dresidual) != first) ||
            (how.has_signs && first != 0))
            streams = 0;
        else if (first) {
            N(pull_one)(row, 0, 0, m, a, b, c, e, masked ? N(keep_at)(row->keep, 0) : none, masked, how, 0);
            j = first;
        }
    }
    for (; j + W <= width; j += W, slot++)
        N(pull_one)(row, j, slot, m, a, b, c, e, masked ? N(keep_at)(row->keep, j) : none, masked, how, streams);
    if (j < width) {
        j = width - W;
        N(pull_one)(row, j, slot, m, a, b, c, e, masked ? N(keep_at)(row->keep, j) : none, masked, how, 0);
    }
}

/* ---- columns: one row, of several channels; width >= W ---- */

INLINE void N(moments_at)(const struct N(row) *row, int64_t j, const REAL *mean, I keep, int masked, REAL *sums,
                          REAL *squares) {
    V s = N(numbers)(sums + j), q = N(numbers)(squares + j);
    N(add_moments)(row->x + j, N(numbers)(mean + j), keep, masked, &s, &q);
    N(set_numbers)(sums + j, s);
    N(set_numbers)(squares + j, q);
}

INLINE void N(moments_of_columns)(const struct N(row) *row, int64_t width, const REAL *mean, int masked, REAL *sums,
                                  REAL *squares) {
    int64_t j = 0;
    for (; j + W <= width; j += W)
        N(moments_at)(row, j, mean, masked ? N(keep_at)(row->keep, j) : (I){0}, masked, sums, squares);
    if (j < width) {
        I rest = N(lanes_from)(j - (width - W));
        j = width - W;
        N(moments_at)(row, j, mean, masked ? rest & N(keep_at)(row->keep, j) : rest, 1, sums, squares);
    }
}

INLINE void N(products_at)(const struct N(row) *row, int64_t j, int64_t slot, struct N(coefficients) given, I keep,
                           int masked, struct N(how) how, REAL *sums, REAL *products) {
    V s = N(numbers)(sums + j), p = N(numbers)(products + j);
    N(add_products)(row, j, slot, N(numbers)(given.mean + j), N(numbers)(given.scale + j), N(numbers)(given.shift + j),
                    keep, masked, how, &s, &p);
    N(set_numbers)(sums + j, s);
    N(set_numbers)(products + j, p);
}

INLINE void N(products_of_columns)(const struct N(row) *row, int64_t width, struct N(coefficients) given,
                                   struct N(how) how, REAL *sums, REAL *products) {
    int64_t j = 0, slot = 0;
    int masked = how.has_keep;
    for (; j + W <= width; j += W, slot++)
        N(products_at)(row, j, slot, given, masked ? N(keep_at)(row->keep, j) : (I){0}, masked, how, sums, products);
    if (j < width) {
        I rest = N(lanes_from)(j - (width - W));
        j = width - W;
        N(products_at)(row, j, slot, given, masked ? rest & N(keep_at)(row->keep, j) : rest, 1, how, sums, products);
    }
}

INLINE void N(apply_at)(const struct N(row) *row, int64_t j, int64_t slot, struct N(coefficients) given,
                        struct N(how) how, int streams) {
    N(apply_one)(row, j, slot, N(numbers)(given.mean + j), N(numbers)(given.scale + j), N(numbers)(given.shift + j),
                 how.has_keep ? N(keep_at)(row->keep, j) : (I){0}, how.has_keep, how, streams);
}

INLINE void N(apply_columns)(const struct N(row) *row, int64_t width, struct N(coefficients) given, struct N(how) how,
                             int streams) {
    int64_t j = 0, slot = 0;
    for (; j + W <= width; j += W, slot++) N(apply_at)(row, j, slot, given, how, streams);
    if (j < width) N(apply_at)(row, width - W, slot, given, how, 0);
}

INLINE void N(pull_at)(const struct N(row) *row, int64_t j, int64_t slot, struct N(coefficients) given,
                       struct N(how) how, int streams) {
    N(pull_one)(row, j, slot, N(numbers)(given.mean + j), N(numbers)(given.scale + j), N(numbers)(given.shift + j),
                N(numbers)(given.pull + j), N(numbers)(given.push + j), how.has_keep ? N(keep_at)(row->keep, j) : (I){0},
                how.has_keep, how, streams);
}

INLINE void N(pull_columns)(const struct N(row) *row, int64_t width, struct N(coefficients) given, struct N(how) how,
                            int streams) {
    int64_t j = 0, slot = 0;
    for (; j + W <= width; j += W, slot++) N(pull_at)(row, j, slot, given, how, streams);
    if (j < width) N(pull_at)(row, width - W, slot, given, how, 0);
}
