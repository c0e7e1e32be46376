/* 3x3 convolutions with a border of zeros, forward and backward, by Winograd's F(4x4, 3x3) in float32; convolution.py
   compiles this for IN input and OUT output channels. Images are bfloat16, height x width x channels.

   Of inputs x, kernels g and outputs' gradients, transformed to 36 points, forward is m = v u at each point, backward is
   of_u = v' of_m and of_v = of_m u': the exact transposes of what ran forward, a quarter of the direct products each.
   Strips of tiles go all the way while they lie in the cache, and what follows a convolution goes along, both ways.

   A thread takes an image at a time. In its copies, channels are as many as vectors hold, those beyond IN or OUT zero. */
#include <omp.h>
#include <stdlib.h>

#define ANY_PROCESSOR /* one without bfloat16 converts by shifts */
#include "../../models/cpu/vectors.h"
#include "../../models/cpu/winograd.h"

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

/* Room for so many floats, at the beginning of a cache line; NULL without memory. */
static float *room(long floats) { return aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64); }

/* As many channels as there are, of up to LANES; the others are zero, and are not touched. */
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

/* To (more: add) ROWS rows of `parts` vectors: the sum over `steps` of a number of each row times vectors of b. */
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

/* Kernels, OUT x 3 x 3 x IN, at their points: point x O x I, or turned, point x I x O. By all threads together. */
ALWAYS_INLINE void transform_kernels(float *u, const float *weight, int turned) {
    const int rows = turned ? IN : OUT, columns = turned ? OUT : IN; /* vectors go along columns */
    const int width = turned ? O : I, by_row = turned ? 1 : TAPS * IN, by_column = turned ? TAPS * IN : 1;
#pragma omp for schedule(static)
    for (int row = 0; row < (turned ? I : O); row++)
        for (int c = 0; c < width; c += LANES) {
            const int there = row < rows ? columns - c : 0;
            vec half[TAKEN][3], g[3], k[TAKEN];
            for (int x = 0; x < 3; x++) {
                for (int y = 0; y < 3; y++)
                    g[y] = load_floats(weight + row * by_row + c * by_column + (3 * y + x) * IN, by_column, there);
                kernel_1d(g, k);
                for (int y = 0; y < TAKEN; y++) half[y][x] = k[y];
            }
            for (int y = 0; y < TAKEN; y++) {
                kernel_1d(half[y], k);
                for (int x = 0; x < TAKEN; x++) store(u + ((y * TAKEN + x) * (turned ? I : O) + row) * width + c, k[x]);
            }
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
    for (int c = 0; c < I; c += LANES) {
        vec half[TAKEN][TAKEN], d[TAKEN], r[TAKEN];
        for (int x = 0; x < TAKEN; x++) {
            for (int y = 0; y < TAKEN; y++) d[y] = load_number(in + (y * columns + x) * I + c);
            input_1d(d, r);
            for (int y = 0; y < TAKEN; y++) half[y][x] = r[y];
        }
        for (int y = 0; y < TAKEN; y++) {
            input_1d(half[y], r);
            for (int x = 0; x < TAKEN; x++) store(v + (y * TAKEN + x) * NEXT_I + c, r[x]);
        }
    }
}

/* What a tile's outputs are made with, and where they go, at the image's beginning. */
struct output {
    const float *bias;
    const number *other;
    number *z, *out;
};

/* A tile's sums from their points to z, and what follows from them to out, if anything does. */
ALWAYS_INLINE void output_tile(const float *m, const struct output *to, struct size s, long tile, int then) {
    const long top = tile / s.tile_columns * GIVEN, left = tile % s.tile_columns * GIVEN;
    const int rows = s.h - top < GIVEN ? s.h - top : GIVEN, columns = s.w - left < GIVEN ? s.w - left : GIVEN;
    for (int c = 0; c < OUT; c += LANES) {
        const int channels = OUT - c;
        const vec bias = to->bias ? load_floats(to->bias + c, 1, channels) : (vec){};
        vec half[GIVEN][TAKEN], d[TAKEN], o[GIVEN];
        for (int x = 0; x < TAKEN; x++) {
            for (int y = 0; y < TAKEN; y++) d[y] = load(m + (y * TAKEN + x) * NEXT_O + c);
            output_1d(d, o);
            for (int y = 0; y < GIVEN; y++) half[y][x] = o[y];
        }
        for (int y = 0; y < rows; y++) {
            long at = ((top + y) * s.w + left) * OUT + c;
            output_1d(half[y], o);
            for (int x = 0; x < columns; x++, at += OUT) {
                const vec z = o[x] + bias;
                store_channels(to->z + at, z, channels);
                if (then == SILU) store_channels(to->out + at, z * sigmoid(z), channels);
                if (then == ATTENTION) {
                    const vec other = load_channels(to->other + at, channels);
                    store_channels(to->out + at, (z + other) * (sigmoid(z) - .5f), channels);
                }
            }
        }
    }
}

/* Zero: what this takes, no kernel forbids. */
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

#include "winograd_gradients.h"
