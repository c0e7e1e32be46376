/* Winograd's F(4x4, 3x3) for nanosr_winograd.py, which compiles this file with what maps.h wants. */
#include "maps.h"
#include "winograd.h"

enum { TILES = 16 };  /* of a strip; transformed they fill half of a 1 MiB cache */
enum { ROWS = LANES == 16 ? 8 : 2 };  /* ROWS tiles x C sums stay in registers */

/* operand: LANES x STEP numbers, which multiply_add multiplies and adds to LANES sums. */
#ifdef BFLOAT16
typedef __m512bh operand;
enum { STEP = 2 };  /* kernels lie in pairs of input channels: C / 2 x C x 2 */
static inline operand load_operand(const number *p) { return (operand)_mm512_loadu_si512(p); }
static inline operand repeated(const number *p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (operand)_mm512_set1_epi32(pair);
}
static inline vec multiply_add(operand a, operand b, vec sum) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
typedef vec operand;
enum { STEP = 1 };  /* kernels lie as C inputs x C outputs */
static inline operand load_operand(const number *p) { return load(p); }
static inline operand repeated(const number *p) { return *p - (vec){}; }
static inline vec multiply_add(operand a, operand b, vec sum) { return sum + a * b; }
#endif

/* ROWS x C tile values times C x C kernel values, for one of the points */
static inline void product(const number *v, const number *u, float *m) {
    vec sum[ROWS][PARTS] = {};
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

static void input_tile(const number *in, long stride, number *v) {
    for (int c = 0; c < C; c += LANES) {
        vec columns[TAKEN][TAKEN], d[TAKEN], r[TAKEN];
        for (int j = 0; j < TAKEN; j++) {
            for (int i = 0; i < TAKEN; i++) d[i] = load_number(in + (i * stride + j) * C + c);
            input_1d(d, r);
            for (int i = 0; i < TAKEN; i++) columns[i][j] = r[i];
        }
        for (int i = 0; i < TAKEN; i++) {
            input_1d(columns[i], r);
            for (int j = 0; j < TAKEN; j++) store_number(v + (i * TAKEN + j) * TILES * C + c, r[j]);
        }
    }
}

/* The tile whose first input is (y, x), which may lie outside of the map: zeros there. */
static void input_tile_at(const number *in, long h, long w, long y, long x, number *v) {
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

static void output_tile_at(const float *m, const float *bias, const number *other, void *out, long h, long w, long y,
                           long x, int then) {
    int rows = h - y < GIVEN ? h - y : GIVEN, columns = w - x < GIVEN ? w - x : GIVEN;
    for (int c = 0; c < C; c += LANES) {
        vec half[GIVEN][TAKEN], d[TAKEN], o[GIVEN];
        for (int j = 0; j < TAKEN; j++) {
            for (int i = 0; i < TAKEN; i++) d[i] = load(m + (i * TAKEN + j) * TILES * C + c);
            output_1d(d, o);
            for (int i = 0; i < GIVEN; i++) half[i][j] = o[i];
        }
        for (int i = 0; i < rows; i++) {
            long at = ((y + i) * w + x) * C + c;
            output_1d(half[i], o);
            for (int j = 0; j < columns; j++, at += C) {
                vec z = followed(o[j] + load(bias + c), other + at, then);
                if (then == SHUFFLE) store_shuffled(out, z, c, h, w, y + i, x + j);
                else store_number((number *)out + at, z);
            }
        }
    }
}

/* in, other, out: H x W x C; out may be other, not in. u: POINTS x C x C. bias: C. */
void convolve(const number *in, const number *u, const float *bias, const number *other, void *out, long h, long w,
              int then, int threads) {
    long tile_rows = (h + GIVEN - 1) / GIVEN, tile_columns = (w + GIVEN - 1) / GIVEN;
    long strips = (tile_columns + TILES - 1) / TILES;
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
    for (long job = 0; job < tile_rows * strips; job++) {
        number v[POINTS][TILES][C] __attribute__((aligned(64)));
        float m[POINTS][TILES][C] __attribute__((aligned(64)));
        long y = job / strips * GIVEN, first = job % strips * TILES;
        long tiles = tile_columns - first < TILES ? tile_columns - first : TILES;
        for (long t = 0; t < tiles; t++) input_tile_at(in, h, w, y - 1, (first + t) * GIVEN - 1, v[0][t]);
        for (int k = 0; k < POINTS; k++)
            for (long t = 0; t < tiles; t += ROWS) product(v[k][t], u + k * C * C, m[k][t]);
        for (long t = 0; t < tiles; t++)
            output_tile_at(m[0][t], bias, other, out, h, w, y, (first + t) * GIVEN, then);
    }
}
