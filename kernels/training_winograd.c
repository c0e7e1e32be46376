/* 3x3 convolutions with a border of zeros, forward and backward, by Winograd's F(4x4, 3x3) in float32; convolution.py
   compiles this for IN input and OUT output channels. Images are bfloat16, height x width x channels.

   Inputs x, kernels g and outputs' gradients are transformed to 36 points. At each point, forward computes m = v u, and
   backward computes of_u = v' of_m and of_v = of_m u', the exact transposes of forward. Each takes a quarter of the
   direct products. A strip of tiles is processed completely while it lies in the cache, together with the operation
   after the convolution, both forward and backward.

   Each thread takes one image at a time. In its copies, channels are padded with zeros to whole vectors. */
#include <omp.h>
#include <stdlib.h>

#define ANY_PROCESSOR /* one without bfloat16 converts by shifts */
#include "vectors.h"
#include "winograd.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))
enum { TILES = 16, ROWS = 8, TAPS = 9 }; /* TILES of a strip; ROWS x 3 vectors of sums stay in registers */
enum { I = (IN + LANES - 1) / LANES * LANES, O = (OUT + LANES - 1) / LANES * LANES };
/* From a point to the next; more than the tiles take, since powers of two share places in a cache. */
enum { NEXT_I = TILES * I + LANES, NEXT_O = TILES * O + LANES };

/* Sizes of an image, and of its copies, which are whole tiles with a border. */
struct size {
    long h, w, tile_columns, tiles, columns, pixels;
};

static struct size size_of(long h, long w) {
    struct size s = {h, w, (w + GIVEN - 1) / GIVEN};
    const long rows = (h + GIVEN - 1) / GIVEN;
    s.tiles = rows * s.tile_columns;
    s.columns = s.tile_columns * GIVEN + 2;
    s.pixels = (rows * GIVEN + 2) * s.columns;
    return s;
}

/* Allocate room for so many floats, aligned to a cache line; return NULL if memory runs out. */
static float *room(long floats) { return aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64); }

/* Load or store the channels that are left, at most LANES; the others load as zero and are not stored. */
ALWAYS_INLINE vec load_channels(const number *p, int left) {
    if (left >= LANES) return load_number(p);
    number some[LANES] = {0};
    memcpy(some, p, left * sizeof(number));
    return load_number(some);
}
ALWAYS_INLINE void store_channels(number *p, vec v, int left) {
    if (left >= LANES) return store_number(p, v);
    number some[LANES];
    store_number(some, v);
    memcpy(p, some, left * sizeof(number));
}
/* The same of floats, which lie `step` apart. */
ALWAYS_INLINE vec load_floats(const float *p, long step, int left) {
    vec v = {};
    for (int lane = 0; lane < LANES; lane++)
        if (lane < left) v[lane] = p[lane * step];
    return v;
}
ALWAYS_INLINE void store_floats(float *p, vec v, int left) {
    for (int lane = 0; lane < LANES; lane++)
        if (lane < left) p[lane] = v[lane];
}

/* Store in `to` (or add to it, if `more`) ROWS rows of `parts` vectors: the sum over `steps` of a row's number in a
   times vectors of b. */
ALWAYS_INLINE void multiply(float *to, long row, const float *a, long a_row, long a_step, const float *b, long b_step,
                            long steps, int parts, int more) {
    vec sum[ROWS][3];
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < parts; p++) sum[r][p] = more ? load(to + r * row + p * LANES) : (vec){};
    for (long s = 0; s < steps; s++, a += a_step, b += b_step) {
        vec of_b[3];
        for (int p = 0; p < parts; p++) of_b[p] = load(b + p * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < parts; p++) sum[r][p] += a[r * a_row] * of_b[p];
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < parts; p++) store(to + r * row + p * LANES, sum[r][p]);
}

/* The same for any number of rows, which are made up to ROWS, and of columns, a multiple of LANES. */
ALWAYS_INLINE void product(float *to, const float *a, long a_row, long a_step, const float *b, long rows, int columns,
                           long steps, int more) {
    for (int c = 0, parts; c < columns; c += parts * LANES) {
        const int left = (columns - c) / LANES;
        parts = left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
        for (long r = 0; r < rows; r += ROWS) {
            float *at = to + r * columns + c;
            const float *of_a = a + r * a_row;
            if (parts == 3) multiply(at, columns, of_a, a_row, a_step, b + c, columns, steps, 3, more);
            else if (parts == 2) multiply(at, columns, of_a, a_row, a_step, b + c, columns, steps, 2, more);
            else multiply(at, columns, of_a, a_row, a_step, b + c, columns, steps, 1, more);
        }
    }
}

/* Kernels to points. */
static inline void kernel_1d(const vec g[3], vec u[TAKEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR, of_zero = 1 / (a * b);
    const float of_near = 1 / (2 * a * (a - b)), of_far = 1 / (2 * b * (b - a));
    const vec near_even = of_near * (g[0] + a * g[2]), near_odd = of_near * NEAR * g[1];
    const vec far_even = of_far * (g[0] + b * g[2]), far_odd = of_far * FAR * g[1];
    u[0] = of_zero * g[0];
    u[1] = near_even + near_odd;
    u[2] = near_even - near_odd;
    u[3] = far_even + far_odd;
    u[4] = far_even - far_odd;
    u[5] = g[2];
}

/* Transform kernels, OUT x 3 x 3 x IN, to points: point x O x I or, if `turned`, point x I x O. All threads must call
   this together. */
ALWAYS_INLINE void transform_kernels(float *u, const float *weight, int turned) {
    const int rows = turned ? IN : OUT, columns = turned ? OUT : IN; /* vectors go along columns */
    const int width = turned ? O : I, by_row = turned ? 1 : TAPS * IN, by_column = turned ? TAPS * IN : 1;
#pragma omp for schedule(static)
    for (int row = 0; row < (turned ? I : O); row++)
        for (int c = 0; c < width; c += LANES) {
            const int there = row < rows ? columns - c : 0;
            const float *at = weight + row * by_row + c * by_column;
            TRANSFORM(3, TAKEN, kernel_1d, load_floats(at + (3 * y + x) * IN, by_column, there), TAKEN, TAKEN,
                      store(u + ((y * TAKEN + x) * (turned ? I : O) + row) * width + c, result));
        }
}

/* An image into the middle of its copy with a border. */
static void pad(number *copy, const number *image, struct size s) {
    for (long y = 0; y < s.h; y++) {
        number *to = copy + ((y + 1) * s.columns + 1) * I;
        const number *from = image + y * s.w * IN;
        if (I == IN) memcpy(to, from, s.w * IN * sizeof(number));
        else
            for (long x = 0; x < s.w; x++) memcpy(to + x * I, from + x * IN, IN * sizeof(number));
    }
}

/* Where a tile begins in a copy with a border. */
static long place(struct size s, long tile) {
    return (tile / s.tile_columns * s.columns + tile % s.tile_columns) * GIVEN;
}

/* A tile's inputs at their points. */
static void input_tile(const number *in, long columns, float *v) {
    for (int c = 0; c < I; c += LANES)
        TRANSFORM(TAKEN, TAKEN, input_1d, load_number(in + (y * columns + x) * I + c), TAKEN, TAKEN,
                  store(v + (y * TAKEN + x) * NEXT_I + c, result));
}

/* Sources and destinations of a tile's outputs; pointers are to the image's beginning. */
struct output {
    const float *bias;
    const number *other;
    number *z, *out;
};

/* LANES sums to z, and what follows from them to out, if anything does. */
ALWAYS_INLINE void finish(vec z, const struct output *to, long at, int channels, int then) {
    store_channels(to->z + at, z, channels);
    if (then == SILU) store_channels(to->out + at, z * sigmoid(z), channels);
    if (then == ATTENTION) {
        const vec other = load_channels(to->other + at, channels);
        store_channels(to->out + at, (z + other) * (sigmoid(z) - .5f), channels);
    }
}

/* A tile's sums from their points, and what follows. */
ALWAYS_INLINE void output_tile(const float *m, const struct output *to, struct size s, long tile, int then) {
    const long top = tile / s.tile_columns * GIVEN, left = tile % s.tile_columns * GIVEN;
    const int rows = s.h - top < GIVEN ? s.h - top : GIVEN, columns = s.w - left < GIVEN ? s.w - left : GIVEN;
    for (int c = 0; c < OUT; c += LANES) {
        const int channels = OUT - c;
        const vec bias = to->bias ? load_floats(to->bias + c, 1, channels) : (vec){};
        TRANSFORM(TAKEN, GIVEN, output_1d, load(m + (y * TAKEN + x) * NEXT_O + c), rows, columns,
                  finish(result + bias, to, ((top + y) * s.w + left + x) * OUT + c, channels, then));
    }
}

/* Return 0: this needs no permission from the operating system. */
int permitted(void) { return 0; }

/* x: n images of h x w x IN; weight: OUT x 3 x 3 x IN; bias: OUT, or NULL; z, the sums, and other and out, which are
   NULL if nothing follows: n images of h x w x OUT. Returns 0, or 1 without memory. */
int forward(const number *x, const float *weight, const float *bias, const number *other, number *z, number *out,
            long n, long h, long w, int then, int threads) {
    const struct size s = size_of(h, w);
    const long size = h * w * OUT, copy_size = (s.pixels * I + 1) / 2, each = (copy_size + LANES) / LANES * LANES;
    const long strip = POINTS * (NEXT_I + NEXT_O);
    float *u = room(POINTS * I * O), *rooms = room(threads * (each + strip));
    if (!u || !rooms) return free(u), free(rooms), 1;
#pragma omp parallel num_threads(threads)
    {
        float *v = rooms + omp_get_thread_num() * (each + strip), *m = v + POINTS * NEXT_I;
        number *copy = (number *)(m + POINTS * NEXT_O);
        memset(v, 0, (each + strip) * sizeof(float));
        transform_kernels(u, weight, 1);
#pragma omp for schedule(static)
        for (long k = 0; k < n; k++) {
            const struct output to = {bias, other ? other + k * size : NULL, z + k * size,
                                      out ? out + k * size : NULL};
            pad(copy, x + k * h * w * IN, s);
            for (long first = 0; first < s.tiles; first += TILES) {
                const long tiles = s.tiles - first < TILES ? s.tiles - first : TILES;
                for (long t = 0; t < tiles; t++) input_tile(copy + place(s, first + t) * I, s.columns, v + t * I);
                for (int p = 0; p < POINTS; p++)
                    product(m + p * NEXT_O, v + p * NEXT_I, I, 1, u + p * I * O, tiles, O, I, 0);
                for (long t = 0; t < tiles; t++) {
                    if (then == NOTHING) output_tile(m + t * O, &to, s, first + t, NOTHING);
                    if (then == SILU) output_tile(m + t * O, &to, s, first + t, SILU);
                    if (then == ATTENTION) output_tile(m + t * O, &to, s, first + t, ATTENTION);
                }
            }
        }
    }
    free(u), free(rooms);
    return 0;
}

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

/* Sources of the gradients of a tile's sums, and the destination of other's, at the image's beginning; any may be
   NULL. */
struct gradient {
    const number *of_out, *of_z, *z, *other;
    number *of_other;
};

/* Return the gradients of LANES sums at a place in the image, from those of the operation after them and their own. */
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

static inline vec counted(vec v, vec *sum) {
    *sum += v;
    return v;
}

/* The gradients of a tile's sums at their points, zero outside of the image; their sums are added to of_bias. */
ALWAYS_INLINE void gradient_tile(float *of_m, float *of_bias, const struct gradient *from, struct size s, long tile,
                                 int then) {
    const long top = tile / s.tile_columns * GIVEN, left = tile % s.tile_columns * GIVEN;
    const int rows = s.h - top < GIVEN ? s.h - top : GIVEN, columns = s.w - left < GIVEN ? s.w - left : GIVEN;
    for (int c = 0; c < OUT; c += LANES) {
        vec sum = load(of_bias + c);
        TRANSFORM(GIVEN, TAKEN, output_gradient_1d,
                  y < rows && x < columns
                      ? counted(gradient_of_sums(from, ((top + y) * s.w + left + x) * OUT + c, OUT - c, then), &sum)
                      : (vec){},
                  TAKEN, TAKEN, store(of_m + (y * TAKEN + x) * NEXT_O + c, result));
        store(of_bias + c, sum);
    }
}

static inline void add(float *to, vec v) { store(to, load(to) + v); }

/* Add the gradients of a tile's inputs, from their points, to the sums of the image's, which has a border. */
static void add_input_gradients(float *sums, long columns, const float *of_v) {
    for (int c = 0; c < I; c += LANES)
        TRANSFORM(TAKEN, TAKEN, input_gradient_1d, load(of_v + (y * TAKEN + x) * NEXT_I + c), TAKEN, TAKEN,
                  add(sums + (y * columns + x) * I + c, result));
}

/* The middle of the sums to an image. */
static void crop(number *image, const float *sums, struct size s) {
    for (long y = 0; y < s.h; y++)
        for (long x = 0; x < s.w; x++)
            for (int c = 0; c < IN; c += LANES)
                store_channels(image + (y * s.w + x) * IN + c, load(sums + ((y + 1) * s.columns + x + 1) * I + c), IN - c);
}

/* The sum of `parts` vectors, `next` floats apart. */
static inline vec sum_of(const float *first, long next, int parts) {
    vec sum = {};
    for (int part = 0; part < parts; part++) sum += load(first + part * next);
    return sum;
}

/* Sum `parts` gradients at the points, each point x O x I and `next` floats apart, and transform them to the gradients
   of kernels, OUT x 3 x 3 x IN. All threads must call this together. */
static void gather_kernels(float *grad_weight, const float *of_u, long next, int parts) {
#pragma omp for schedule(static)
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i += LANES)
            TRANSFORM(TAKEN, 3, kernel_gradient_1d, sum_of(of_u + ((y * TAKEN + x) * O + o) * I + i, next, parts), 3, 3,
                      store_floats(grad_weight + (o * TAPS + 3 * y + x) * IN + i, result, IN - i));
}

/* Compute the gradients of `forward` from those of out and z: of x (unless grad_x is NULL), weight, bias, and other if
   there is one. One of of_out and of_z may be NULL; of_out is NULL if nothing follows. */
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
        gather_kernels(grad_weight, rooms, each, omp_get_num_threads()); /* may be fewer than asked for */
#pragma omp for schedule(static)
        for (int o = 0; o < OUT; o++) {
            grad_bias[o] = 0;
            for (int t = 0; t < omp_get_num_threads(); t++) grad_bias[o] += rooms[t * each + of_u_size + o];
        }
    }
    free(u), free(rooms);
    return 0;
}
