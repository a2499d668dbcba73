/* Loops for each combination of what there may be, with flags as constants; included once per dtype.

   A variant's name says its form of activation, and r, k, s: whether there are a residual and `keep`, and whether signs
   are kept (forward) or read (backward). What trains most networks has variants of its own; GENERAL serves the rest and
   looks at its flags for every vector. */

#define ARGUMENTS                                                                                                    \
    const struct N(row) *first, int64_t number, int64_t width, struct N(coefficients) given, struct N(how) how,      \
        int streams, REAL *sums, REAL *products

/* The next channel's run, or the next row of columns. */
INLINE void N(next_row)(struct N(row) *row, const struct N(how) *how) {
    row->x += how->stride;
    if (row->dy) row->dy += how->stride;
    if (row->residual) row->residual += how->stride;
    if (row->y) row->y += how->stride;
    if (row->dx) row->dx += how->stride;
    if (row->dresidual) row->dresidual += how->stride;
    if (row->signs) row->signs += how->sign_stride;
}

/* A loop over `number` rows, with flags that `SET` makes constants. */
#define ROWS_LOOP(name, SET, ...)                                                                                    \
    static void N(name)(ARGUMENTS) {                                                                                 \
        struct N(row) row = *first;                                                                                  \
        SET;                                                                                                         \
        (void)streams, (void)sums, (void)products;                                                                   \
        for (int64_t c = 0; c < number; c++, N(next_row)(&row, &how)) {                                              \
            __VA_ARGS__;                                                                                             \
        }                                                                                                            \
    }

#define MOMENTS_VARIANT(name, SET)                                                                                   \
    ROWS_LOOP(moments_runs_##name, SET,                                                                              \
              N(moments_of_run)(row.x, row.keep, width, given.mean[c], how.has_keep, sums + c * W, products + c * W)) \
    ROWS_LOOP(moments_columns_##name, SET,                                                                           \
              N(moments_of_columns)(&row, width, given.mean, how.has_keep, sums, products))

#define GRADIENT_VARIANT(name, SET)                                                                                  \
    ROWS_LOOP(products_runs_##name, SET,                                                                             \
              N(products_of_run)(&row, width, given.mean[c], given.scale[c], given.shift[c], how, sums + c * W,      \
                                 products + c * W))                                                                  \
    ROWS_LOOP(products_columns_##name, SET, N(products_of_columns)(&row, width, given, how, sums, products))         \
    ROWS_LOOP(pull_runs_##name, SET,                                                                                 \
              N(pull_run)(&row, width, given.mean[c], given.scale[c], given.shift[c], given.pull[c], given.push[c],  \
                          how, streams))                                                                             \
    ROWS_LOOP(pull_columns_##name, SET, N(pull_columns)(&row, width, given, how, streams))

#define APPLY_VARIANT(name, SET)                                                                                     \
    ROWS_LOOP(apply_runs_##name, SET,                                                                                \
              N(apply_run)(&row, width, given.mean[c], given.scale[c], given.shift[c], how, streams))                \
    ROWS_LOOP(apply_columns_##name, SET, N(apply_columns)(&row, width, given, how, streams))

#define VARIANT(name, SET) MOMENTS_VARIANT(name, SET) GRADIENT_VARIANT(name, SET) APPLY_VARIANT(name, SET)

#define SET(form_, r, k, s) (how.form = form_, how.has_residual = r, how.has_keep = k, how.has_signs = s)
#define RELU_SET(r, k, s) (SET(FORM_RELU, r, k, s), how.activation = RELU, how.slope = 0)

VARIANT(general, (void)0)
#if !WIDE
VARIANT(none, SET(FORM_NONE, 0, 0, 0))
VARIANT(none_k, SET(FORM_NONE, 0, 1, 0))
APPLY_VARIANT(none_r, SET(FORM_NONE, 1, 0, 0))
APPLY_VARIANT(relu, RELU_SET(0, 0, 0))
APPLY_VARIANT(relu_k, RELU_SET(0, 1, 0))
APPLY_VARIANT(relu_r, RELU_SET(1, 0, 0))
APPLY_VARIANT(relu_rs, RELU_SET(1, 0, 1))
GRADIENT_VARIANT(relu, RELU_SET(0, 0, 0))
GRADIENT_VARIANT(relu_k, RELU_SET(0, 1, 0))
GRADIENT_VARIANT(relu_s, RELU_SET(0, 0, 1))
#endif

/* ---- the variant that serves ---- */

enum { N(MOMENTS), N(PRODUCTS), N(PULL), N(APPLY) };

#if WIDE
#define TABLE(kind, APPLIES) {N(kind##_general)}
#else
#define TABLE(kind, APPLIES)                                                                                         \
    {N(kind##_general), N(kind##_none), N(kind##_none_k), APPLIES(kind)}
#endif
#define NO_MORE(kind) NULL
#define OF_GRADIENTS(kind) NULL, N(kind##_relu), N(kind##_relu_k), NULL, N(kind##_relu_s)
#define OF_APPLY(kind) N(kind##_none_r), N(kind##_relu), N(kind##_relu_k), N(kind##_relu_r), N(kind##_relu_rs)

enum { N(GENERAL), N(NONE), N(NONE_K), N(NONE_R), N(RELU_ONLY), N(RELU_K), N(RELU_R), N(RELU_S), N(VARIANTS) };

/* By what is done, the walk (runs, columns), and the variant; NULL where GENERAL serves. */
static N(loop) *const N(loops)[4][2][N(VARIANTS)] = {
    {TABLE(moments_runs, NO_MORE), TABLE(moments_columns, NO_MORE)},
    {TABLE(products_runs, OF_GRADIENTS), TABLE(products_columns, OF_GRADIENTS)},
    {TABLE(pull_runs, OF_GRADIENTS), TABLE(pull_columns, OF_GRADIENTS)},
    {TABLE(apply_runs, OF_APPLY), TABLE(apply_columns, OF_APPLY)},
};

static N(loop) *N(loop_of)(int what, int columns, const struct N(how) *how) {
    int r = how->has_residual, k = how->has_keep, s = how->has_signs, variant = N(GENERAL);
    if (how->form == FORM_NONE && !s && !(r && k)) variant = r ? N(NONE_R) : k ? N(NONE_K) : N(NONE);
    if (how->form == FORM_RELU && !k && s) variant = N(RELU_S);
    if (how->form == FORM_RELU && !s && !(r && k)) variant = r ? N(RELU_R) : k ? N(RELU_K) : N(RELU_ONLY);
    N(loop) *found = N(loops)[what][columns][variant];
    return found ? found : N(loops)[what][columns][N(GENERAL)];
}

#undef ARGUMENTS
#undef ROWS_LOOP
#undef MOMENTS_VARIANT
#undef VARIANT
#undef GRADIENT_VARIANT
#undef APPLY_VARIANT
#undef SET
#undef RELU_SET
#undef TABLE
#undef NO_MORE
#undef OF_GRADIENTS
#undef OF_APPLY
