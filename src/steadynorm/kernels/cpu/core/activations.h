/* Activations of vectors, and their derivatives; included once per dtype by loops.h. */

#if WIDE
/* libm's, lane by lane */
#define LANES(expression)                    \
    V result = {0};                          \
    for (int lane = 0; lane < W; lane++) {   \
        double z = v[lane];                  \
        result[lane] = (expression);         \
    }                                        \
    return result;

INLINE V N(sigmoid)(V v) { LANES(1 / (1 + exp(-z))) }
INLINE V N(tanh)(V v) { LANES(tanh(z)) }
/* the standard normal distribution's function and density */
INLINE V N(below)(V v) { LANES(0.5 * erfc(-z * 0.70710678118654752440)) }
INLINE V N(density)(V v) { LANES(exp(-0.5 * z * z) * 0.39894228040143267794) }
#undef LANES
#else
/* e^x = power * (1 + rest), |x| <= 88 (further out it is held there; nan stays in rest):
   power = 2^n, n = round(x / ln 2), rest = e^r - 1 = sum r^k / k! up to k = 8, r = x - n ln 2.
   |r| <= 0.35, so the first neglected term is below 3e-10 of r. */
INLINE void N(exponential)(V x, V *power, V *rest) {
    x = N(choose)(N(at_most)(x, N(all)(-87.f)), N(all)(-87.f), x);
    x = N(choose)(N(at_least)(x, N(all)(88.f)), N(all)(88.f), x);
    V half = N(choose)(N(at_most)(x, (V){0}), N(all)(-0.5f), N(all)(0.5f));
    V whole = __builtin_convertvector(__builtin_convertvector(x * 1.44269504f + half, I), V);
    V r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts */
    V p = r * (1 / 40320.f) + 1 / 5040.f;
    p = N(multiply_add)(p, r, N(all)(1 / 720.f));
    p = N(multiply_add)(p, r, N(all)(1 / 120.f));
    p = N(multiply_add)(p, r, N(all)(1 / 24.f));
    p = N(multiply_add)(p, r, N(all)(1 / 6.f));
    p = N(multiply_add)(p, r, N(all)(1 / 2.f));
    p = N(multiply_add)(p, r, N(all)(1.f));
    *rest = p * r;
    *power = (V)((__builtin_convertvector(whole, I) + 127) << 23);
}

INLINE V N(sigmoid)(V z) {
    V power, rest;
    N(exponential)(-z, &power, &rest);
    return 1.f / (1.f + power * (1.f + rest));
}

/* By e^2z - 1, which does not cancel for small z. */
INLINE V N(tanh)(V z) {
    V power, rest;
    N(exponential)(2.f * z, &power, &rest);
    V grown = power * rest + (power - 1.f);
    return N(choose)(N(at_least)(z, N(all)(10.f)), N(all)(1.f), grown / (grown + 2.f));
}

/* The standard normal distribution's function (returned) and density at z. The tail is e^(-z^2/2) times a polynomial in
   t = 1 / (1 + 0.3 |z|), fitted by least squares: within 1e-8. */
INLINE V N(normal)(V z, V *density) {
    V power, rest;
    TRUTH negative = N(at_most)(z, N(all)(-0.f));
    V distance = N(choose)(negative, -z, z);
    N(exponential)(-0.5f * distance * distance, &power, &rest);
    V bell = power * (1.f + rest);
    V t = 1.f / (1.f + 0.3f * distance);
    V tail = t * 0.035272937f + -0.15480304f;
    tail = N(multiply_add)(tail, t, N(all)(0.20082207f));
    tail = N(multiply_add)(tail, t, N(all)(-0.0471862f));
    tail = N(multiply_add)(tail, t, N(all)(0.12433886f));
    tail = N(multiply_add)(tail, t, N(all)(0.10142873f));
    tail = N(multiply_add)(tail, t, N(all)(0.12047765f));
    tail = N(multiply_add)(tail, t, N(all)(0.119648993f));
    tail = tail * t * bell;
    *density = bell * 0.3989422804f;
    return N(choose)(negative, tail, 1.f - tail);
}
INLINE V N(below)(V z) {
    V density;
    return N(normal)(z, &density);
}
INLINE V N(density)(V z) {
    V density;
    N(normal)(z, &density);
    return density;
}
#endif

/* ---- smooth (and hardswish, whose derivative is not constant) ---- */

static NOINLINE V N(smooth)(V z, int activation) {
    switch (activation) {
    case SILU: return z * N(sigmoid)(z);
    case GELU: return z * N(below)(z);
    case SIGMOID: return N(sigmoid)(z);
    case TANH: return N(tanh)(z);
    default: { /* hardswish: z * clamp(z + 3, 0, 6) / 6 */
        V gate = N(choose)(N(at_most)(z, N(all)(-3)), (V){0}, N(choose)(N(at_least)(z, N(all)(3)), N(all)(6), z + 3));
        return z * gate / 6;
    }
    }
}

static NOINLINE V N(smooth_derivative)(V z, int activation) {
    switch (activation) {
    case SILU: {
        V gate = N(sigmoid)(z);
        return gate * (1 + z * (1 - gate));
    }
    case GELU: return N(below)(z) + z * N(density)(z);
    case SIGMOID: {
        V gate = N(sigmoid)(z);
        return gate * (1 - gate);
    }
    case TANH: {
        V y = N(tanh)(z);
        return 1 - y * y;
    }
    default: { /* hardswish */
        V inside = N(choose)(N(at_least)(z, N(all)(3)), N(all)(1), z / 3 + (REAL)0.5);
        return N(choose)(N(at_most)(z, N(all)(-3)), (V){0}, inside);
    }
    }
}

/* ---- piecewise linear: slope below 0; relu6 is 6 above 6 ---- */

/* Lanes where the derivative is not 1: from the left at a kink, as torch takes it. nan passes. */
INLINE TRUTH N(bent_lanes)(V z, int activation) {
    TRUTH low = N(at_most)(z, (V){0});
    return activation == RELU6 ? N(either)(low, N(at_least)(z, N(all)(6))) : low;
}

/* `value` times the derivative; a slope of 0 gives 0 whatever the value. */
INLINE V N(bent)(TRUTH lanes, V value, int form, REAL slope) {
    return form == FORM_RELU || slope == 0 ? N(drop)(lanes, value) : N(choose)(lanes, value * slope, value);
}

/* The activation at z, of a form that is known when this is compiled. `lanes` is set for a piecewise linear one. */
INLINE V N(activate)(V z, int form, int activation, REAL slope, TRUTH *lanes) {
    if (form == FORM_NONE) return z;
    if (form == FORM_SMOOTH) return N(smooth)(z, activation);
    *lanes = N(bent_lanes)(z, activation);
    V y = N(bent)(N(at_most)(z, (V){0}), z, form, slope);
    return activation == RELU6 ? N(choose)(N(at_least)(y, N(all)(6)), N(all)(6), y) : y;
}

/* dz, of dy and z. */
INLINE V N(activate_grad)(V dy, V z, int form, int activation, REAL slope) {
    if (form == FORM_NONE) return dy;
    if (form == FORM_SMOOTH) return dy * N(smooth_derivative)(z, activation);
    return N(bent)(N(bent_lanes)(z, activation), dy, form, slope);
}
