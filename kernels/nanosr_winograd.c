/* Winograd's convolutions for nanosr_winograd.py, which compiles this file with the macros of maps.h and winograd.h. */
#include "maps.h"
#include "winograd.h"

enum { TILES = GIVEN == 6 ? 16 : 32 }; /* of a strip; with their sums they take 0.4 MiB */
enum { NEXT = TILES * C + LANES };     /* from a point to the next; powers of two share places in a cache */
enum { ROWS = LANES == 16 ? 8 : 2 };   /* ROWS tiles x C sums stay in registers */
enum { COLOURS = 3, SEGMENT = 64 };    /* SEGMENT pixels of a row go at once, in the first convolution */

/* factor: the type of the multiplied numbers, transformed tiles and weights. operand: LANES x STEP factors, which
   multiply_add multiplies and adds to LANES sums. */
#ifdef BFLOAT16
typedef number factor;
typedef __m512bh operand;
enum { STEP = 2 }; /* weights lie in pairs of input channels: C / 2 x C x 2 */
static inline void store_factor(factor *p, vec v) { store_number(p, v); }
static inline operand load_operand(const factor *p) { return (operand)_mm512_loadu_si512(p); }
static inline operand repeated(const factor *p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (operand)_mm512_set1_epi32(pair);
}
static inline vec multiply_add(operand a, operand b, vec sum) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
typedef float factor;
typedef vec operand;
enum { STEP = 1 }; /* weights lie as C inputs x C outputs */
static inline void store_factor(factor *p, vec v) { store(p, v); }
static inline operand load_operand(const factor *p) { return load(p); }
static inline operand repeated(const factor *p) { return *p - (vec){}; }
static inline vec multiply_add(operand a, operand b, vec sum) { return sum + a * b; }
#endif

/* To (more: add) ROWS x C sums: ROWS x C values times C x C weights. */
static inline void product(const factor *v, const factor *u, float *m, int more) {
    vec sum[ROWS][PARTS];
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PARTS; p++) sum[r][p] = more ? load(m + r * C + p * LANES) : (vec){};
    for (int c = 0; c < C; c += STEP, u += STEP * C) {
        operand kernel[PARTS];
        for (int p = 0; p < PARTS; p++) kernel[p] = load_operand(u + STEP * p * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            operand value = repeated(v + r * C + c);
            for (int p = 0; p < PARTS; p++) sum[r][p] = multiply_add(value, kernel[p], sum[r][p]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PARTS; p++) store(m + r * C + p * LANES, sum[r][p]);
}

static void input_tile(const number *in, long stride, factor *v) {
    for (int c = 0; c < C; c += LANES)
        TRANSFORM(TAKEN, TAKEN, input_1d, load_number(in + (y * stride + x) * C + c), TAKEN, TAKEN,
                  store_factor(v + (y * TAKEN + x) * NEXT + c, result));
}

/* Transform the tile whose first input is (y, x). Inputs outside of the map are zero. */
static void input_tile_at(const number *in, long h, long w, long y, long x, factor *v) {
    if (y >= 0 && x >= 0 && y + TAKEN <= h && x + TAKEN <= w) {
        input_tile(in + (y * w + x) * C, w, v);
        return;
    }
    number padded[TAKEN][TAKEN][C] = {};
    for (long i = 0; i < TAKEN; i++)
        for (long j = 0; j < TAKEN; j++)
            if (y + i >= 0 && y + i < h && x + j >= 0 && x + j < w)
                memcpy(padded[i][j], in + ((y + i) * w + x + j) * C, sizeof padded[i][j]);
    input_tile(padded[0][0], TAKEN, v);
}

/* LANES sums of a pixel, from channel c on, to where they go. */
static inline void finish(vec sum, const float *bias, const number *other, void *out, long h, long w, long y, long x,
                          int c, int then) {
    const long at = (y * w + x) * C + c;
    const vec z = followed(sum + load(bias + c), other + at, then);
    if (then == SHUFFLE) store_shuffled(out, z, c, h, w, y, x);
    else store_number((number *)out + at, z);
}

static void output_tile_at(const float *m, const float *bias, const number *other, void *out, long h, long w, long top,
                           long left, int then) {
    const int rows = h - top < GIVEN ? h - top : GIVEN, columns = w - left < GIVEN ? w - left : GIVEN;
    for (int c = 0; c < C; c += LANES)
        TRANSFORM(TAKEN, GIVEN, output_1d, load(m + (y * TAKEN + x) * NEXT + c), rows, columns,
                  finish(result, bias, other, out, h, w, top + y, left + x, c, then));
}

/* in, other, out: H x W x C; out may be other, not in. u: POINTS x C x C. bias: C. */
void convolve(const number *in, const factor *u, const float *bias, const number *other, void *out, long h, long w,
              int then, int threads) {
    long tile_rows = (h + GIVEN - 1) / GIVEN, tile_columns = (w + GIVEN - 1) / GIVEN;
    long strips = (tile_columns + TILES - 1) / TILES;
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
    for (long job = 0; job < tile_rows * strips; job++) {
        factor v[POINTS][NEXT] __attribute__((aligned(64)));
        float m[POINTS][NEXT] __attribute__((aligned(64)));
        long y = job / strips * GIVEN, first = job % strips * TILES;
        long tiles = tile_columns - first < TILES ? tile_columns - first : TILES;
        for (long t = 0; t < tiles; t++) input_tile_at(in, h, w, y - 1, (first + t) * GIVEN - 1, v[0] + t * C);
        for (int k = 0; k < POINTS; k++)
            for (long t = 0; t < tiles; t += ROWS) product(v[k] + t * C, u + k * C * C, m[k] + t * C, 0);
        for (long t = 0; t < tiles; t++)
            output_tile_at(m[0] + t * C, bias, other, out, h, w, y, (first + t) * GIVEN, then);
    }
}

/* out: the sum of three maps, each pixel of them times C x C weights of its map. Maps have `pixels` x C numbers. */
void weighted_sum(const number *first, const number *second, const number *third, const factor *weights, number *out,
                  long pixels, int threads) {
    const number *const maps[] = {first, second, third};
#pragma omp parallel for schedule(dynamic, 64) num_threads(threads)
    for (long begin = 0; begin < pixels; begin += ROWS) {
        const long numbers = (pixels - begin < ROWS ? pixels - begin : ROWS) * C;
        factor values[ROWS * C] = {};
        float sums[ROWS * C];
        for (int k = 0; k < 3; k++) {
            for (long i = 0; i < numbers; i += LANES) store_factor(values + i, load_number(maps[k] + begin * C + i));
            product(values, weights + k * C * C, sums, k > 0);
        }
        for (long i = 0; i < numbers; i += LANES) store_number(out + begin * C + i, load(sums + i));
    }
}

/* The first convolution: in, COLOURS x H x W; weights, COLOURS x 3 x 3 x C; out, H x W x C. */
void begin(const float *in, const float *weights, const float *bias, number *out, long h, long w, int threads) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
    for (long y = 0; y < h; y++)
        for (long first = 0; first < w; first += SEGMENT) {
            float rows[COLOURS * 3][SEGMENT + 2];
            for (int k = 0; k < COLOURS * 3; k++)
                for (long x = 0; x < SEGMENT + 2; x++) {
                    const long from_y = y + k % 3 - 1, from_x = first + x - 1;
                    const int inside = from_y >= 0 && from_y < h && from_x >= 0 && from_x < w;
                    rows[k][x] = inside ? in[(k / 3 * h + from_y) * w + from_x] : 0;
                }
            for (long x = 0; x < SEGMENT && first + x < w; x += ROWS) {
                vec sum[ROWS][PARTS];
                for (int r = 0; r < ROWS; r++)
                    for (int p = 0; p < PARTS; p++) sum[r][p] = load(bias + p * LANES);
                for (int tap = 0; tap < COLOURS * 9; tap++)
                    for (int r = 0; r < ROWS; r++)
                        for (int p = 0; p < PARTS; p++)
                            sum[r][p] += rows[tap / 3][x + r + tap % 3] * load(weights + tap * C + p * LANES);
                for (int r = 0; r < ROWS && first + x + r < w; r++)
                    for (int p = 0; p < PARTS; p++)
                        store_number(out + (y * w + first + x + r) * C + p * LANES, sum[r][p]);
            }
        }
}
