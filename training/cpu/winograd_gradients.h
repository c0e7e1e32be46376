/* The gradients of a convolution: what winograd.c includes, in its terms. */

/* Gradients go the other way, by the transposed matrices: inputs' from their points, … */
static inline void input_gradient_1d(const vec v[TAKEN], vec d[TAKEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR;
    const vec near_sum = v[1] + v[2], near_difference = NEAR * (v[1] - v[2]);
    const vec far_sum = v[3] + v[4], far_difference = FAR * (v[3] - v[4]);
    d[0] = a * b * v[0];
    d[1] = a * b * v[5] - b * near_difference - a * far_difference;
    d[2] = -(a + b) * v[0] - b * near_sum - a * far_sum;
    d[3] = near_difference + far_difference - (a + b) * v[5];
    d[4] = v[0] + near_sum + far_sum;
    d[5] = v[5];
}

/* … the points' from the outputs', … */
static inline void output_gradient_1d(const vec o[GIVEN], vec m[TAKEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR;
    const vec near_even = o[0] + a * o[2], near_odd = NEAR * (o[1] + a * o[3]);
    const vec far_even = o[0] + b * o[2], far_odd = FAR * (o[1] + b * o[3]);
    m[0] = o[0];
    m[1] = near_even + near_odd;
    m[2] = near_even - near_odd;
    m[3] = far_even + far_odd;
    m[4] = far_even - far_odd;
    m[5] = o[3];
}

/* … and the kernels' from their points. */
static inline void kernel_gradient_1d(const vec u[TAKEN], vec g[3]) {
    const float a = NEAR * NEAR, b = FAR * FAR, of_zero = 1 / (a * b);
    const float of_near = 1 / (2 * a * (a - b)), of_far = 1 / (2 * b * (b - a));
    const vec near_sum = of_near * (u[1] + u[2]), near_difference = of_near * NEAR * (u[1] - u[2]);
    const vec far_sum = of_far * (u[3] + u[4]), far_difference = of_far * FAR * (u[3] - u[4]);
    g[0] = of_zero * u[0] + near_sum + far_sum;
    g[1] = near_difference + far_difference;
    g[2] = a * near_sum + b * far_sum + u[5];
}

/* What the gradients of a tile's sums come from, and where other's goes, at the image's beginning; any may be NULL. */
struct gradient {
    const number *of_out, *of_z, *z, *other;
    number *of_other;
};

/* The gradients of LANES sums, at a place in the image, by those of what follows and of the sums themselves. */
ALWAYS_INLINE vec gradient_of_sums(const struct gradient *from, long at, int channels, int then) {
    vec result = {};
    if (then != NOTHING && from->of_out) {
        const vec of_out = load_channels(from->of_out + at, channels), z = load_channels(from->z + at, channels);
        const vec s = sigmoid(z);
        if (then == SILU) result = of_out * s * (1.f + z * (1.f - s));
        else {
            const vec factor = s - .5f;
            result = of_out * (factor + (z + load_channels(from->other + at, channels)) * s * (1.f - s));
            store_channels(from->of_other + at, of_out * factor, channels);
        }
    }
    if (from->of_z) result += load_channels(from->of_z + at, channels);
    return result;
}

/* The gradients of a tile's sums at their points, zero outside of the image; their sums are added to of_bias. */
ALWAYS_INLINE void gradient_tile(float *of_m, float *of_bias, const struct gradient *from, struct size s, long tile,
                                 int then) {
    const long top = tile / s.tile_columns * GIVEN, left = tile % s.tile_columns * GIVEN;
    const int rows = s.h - top < GIVEN ? s.h - top : GIVEN, columns = s.w - left < GIVEN ? s.w - left : GIVEN;
    for (int c = 0; c < OUT; c += LANES) {
        vec half[TAKEN][GIVEN], o[GIVEN], m[TAKEN], sum = load(of_bias + c);
        for (int x = 0; x < GIVEN; x++) {
            for (int y = 0; y < GIVEN; y++) {
                const long at = ((top + y) * s.w + left + x) * OUT + c;
                o[y] = y < rows && x < columns ? gradient_of_sums(from, at, OUT - c, then) : (vec){};
                sum += o[y];
            }
            output_gradient_1d(o, m);
            for (int y = 0; y < TAKEN; y++) half[y][x] = m[y];
        }
        store(of_bias + c, sum);
        for (int y = 0; y < TAKEN; y++) {
            output_gradient_1d(half[y], m);
            for (int x = 0; x < TAKEN; x++) store(of_m + (y * TAKEN + x) * NEXT_O + c, m[x]);
        }
    }
}

/* Add the gradients of a tile's inputs, from their points, to the sums of the image's, which has a border. */
static void add_input_gradients(float *sums, long columns, const float *of_v) {
    for (int c = 0; c < I; c += LANES) {
        vec half[TAKEN][TAKEN], v[TAKEN], d[TAKEN];
        for (int x = 0; x < TAKEN; x++) {
            for (int y = 0; y < TAKEN; y++) v[y] = load(of_v + (y * TAKEN + x) * NEXT_I + c);
            input_gradient_1d(v, d);
            for (int y = 0; y < TAKEN; y++) half[y][x] = d[y];
        }
        for (int y = 0; y < TAKEN; y++) {
            input_gradient_1d(half[y], d);
            for (int x = 0; x < TAKEN; x++) {
                float *at = sums + (y * columns + x) * I + c;
                store(at, load(at) + d[x]);
            }
        }
    }
}

/* The middle of the sums to an image. */
static void crop(number *image, const float *sums, struct size s) {
    for (long y = 0; y < s.h; y++)
        for (long x = 0; x < s.w; x++)
            for (int c = 0; c < IN; c += LANES)
                store_channels(image + (y * s.w + x) * IN + c, load(sums + ((y + 1) * s.columns + x + 1) * I + c), IN - c);
}

/* The gradients of kernels, OUT x 3 x 3 x IN, from those of their points, point x O x I, `parts` of which, `next` floats
   apart, are summed. By all threads together. */
static void gather_kernels(float *grad_weight, const float *of_u, long next, int parts) {
#pragma omp for schedule(static)
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i += LANES) {
            vec half[3][TAKEN], u[TAKEN], g[3];
            for (int x = 0; x < TAKEN; x++) {
                for (int y = 0; y < TAKEN; y++) {
                    u[y] = (vec){};
                    for (int part = 0; part < parts; part++)
                        u[y] += load(of_u + part * next + ((y * TAKEN + x) * O + o) * I + i);
                }
                kernel_gradient_1d(u, g);
                for (int y = 0; y < 3; y++) half[y][x] = g[y];
            }
            for (int y = 0; y < 3; y++) {
                kernel_gradient_1d(half[y], g);
                for (int x = 0; x < 3; x++)
                    store_floats(grad_weight + (o * TAPS + 3 * y + x) * IN + i, g[x], IN - i);
            }
        }
}

/* The gradients of `forward`: of x, unless grad_x is NULL, of weight, of bias, and of other if there is one, from those
   of out and of z; one of the two may be NULL, and of_out is if nothing follows. */
int backward(const number *of_out, const number *of_z, const number *x, const float *weight, const number *other,
             const number *z, number *grad_x, float *grad_weight, float *grad_bias, number *grad_other, long n, long h,
             long w, int then, int threads) {
    const struct size s = size_of(h, w);
    const long size = h * w * OUT, of_u_size = POINTS * O * I, copy_size = (s.pixels * I / 2 + LANES) / LANES * LANES;
    const long zeroed = of_u_size + O + POINTS * (NEXT_I + NEXT_O) + copy_size, each = zeroed + s.pixels * I;
    float *u = room(POINTS * I * O), *rooms = room(threads * each);
    if (!u || !rooms) return free(u), free(rooms), 1;
#pragma omp parallel num_threads(threads)
    {
        float *of_u = rooms + omp_get_thread_num() * each, *of_bias = of_u + of_u_size;
        float *v = of_bias + O, *of_m = v + POINTS * NEXT_I, *sums = of_u + zeroed;
        number *copy = (number *)(of_m + POINTS * NEXT_O);
        memset(of_u, 0, zeroed * sizeof(float));
        if (grad_x) transform_kernels(u, weight, 0);
#pragma omp for schedule(static)
        for (long k = 0; k < n; k++) {
            const long at = k * size;
            const struct gradient from = {of_out ? of_out + at : NULL, of_z ? of_z + at : NULL, z ? z + at : NULL,
                                          other ? other + at : NULL, grad_other ? grad_other + at : NULL};
            pad(copy, x + k * h * w * IN, s);
            if (grad_x) memset(sums, 0, s.pixels * I * sizeof(float));
            for (long first = 0; first < s.tiles; first += TILES) {
                const long tiles = s.tiles - first < TILES ? s.tiles - first : TILES;
                for (long t = 0; t < tiles; t++) {
                    input_tile(copy + place(s, first + t) * I, s.columns, v + t * I);
                    if (then == NOTHING) gradient_tile(of_m + t * O, of_bias, &from, s, first + t, NOTHING);
                    if (then == SILU) gradient_tile(of_m + t * O, of_bias, &from, s, first + t, SILU);
                    if (then == ATTENTION) gradient_tile(of_m + t * O, of_bias, &from, s, first + t, ATTENTION);
                }
                for (int p = 0; p < POINTS; p++) {
                    float *of_v = v + p * NEXT_I; /* take the place of v, which is not needed any more */
                    product(of_u + p * O * I, of_m + p * NEXT_O, 1, O, of_v, O, I, tiles, 1);
                    if (grad_x) product(of_v, of_m + p * NEXT_O, O, 1, u + p * O * I, tiles, I, O, 0);
                }
                for (long t = 0; grad_x && t < tiles; t++)
                    add_input_gradients(sums + place(s, first + t) * I, s.columns, v + t * I);
            }
            if (grad_x) crop(grad_x + k * h * w * IN, sums, s);
        }
        gather_kernels(grad_weight, rooms, each, threads);
#pragma omp for schedule(static)
        for (int o = 0; o < OUT; o++) {
            grad_bias[o] = 0;
            for (int t = 0; t < threads; t++) grad_bias[o] += rooms[t * each + of_u_size + o];
        }
    }
    free(u), free(rooms);
    return 0;
}
