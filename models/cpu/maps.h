/* What the convolutions of NanoSR in C share: vectors, the numbers that maps are made of, and what follows a convolution.
   The Python file beside each defines CHANNELS, FLOAT32 or BFLOAT16, and NOTHING, SILU … as numbers. */
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { C = CHANNELS, PARTS = C / LANES };
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }

/* number: what maps, tiles and kernels are made of; everything between is computed in float */
#ifdef BFLOAT16
#ifndef __AVX512BF16__
#error "bfloat16 takes a processor with AVX512_BF16"
#endif
#include <immintrin.h>
typedef uint16_t number;
static inline vec load_number(const number *p) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
static inline void store_number(number *p, vec v) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
#else
typedef float number;
static inline vec load_number(const number *p) { return load(p); }
static inline void store_number(number *p, vec v) { store(p, v); }
#endif

static inline vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

static inline vec sigmoid(vec x) {
    const vec zero = {};
    vec y = x * -1.44269504f;  /* exp(-x) = 2^y */
    y = choose(y < 126.f, y, zero + 126.f);
    y = choose(y > -126.f, y, zero - 126.f);
    vec shifted = y + 12582912.f;  /* 1.5 x 2^23: the lowest bits hold y rounded */
    vec f = y - (shifted - 12582912.f);
    vec p = .0013333558f + f * .000154035f;  /* Taylor series of 2^f on [-1/2, 1/2] */
    p = .0096181291f + f * p;
    p = .0555041087f + f * p;
    p = .240226507f + f * p;
    p = .693147181f + f * p;
    p = 1.f + f * p;
    return 1.f / (1.f + (vec)((ivec)p + ((ivec)shifted << 23)));
}

/* A convolution's outputs as the map gets them; `other` is what ATTENTION and ADD take beside. */
static inline vec followed(vec z, const number *other, int then) {
    if (then == SILU) return z * sigmoid(z);
    if (then == ATTENTION) return (z + load_number(other)) * (sigmoid(z) - .5f);
    if (then == ADD) return z + load_number(other);
    return z;
}

/* Channels c … c + LANES - 1 of LR pixel (y, x) to their places in the SR image of 3 x 4h x 4w. */
static inline void store_shuffled(float *out, vec z, int c, long h, long w, long y, long x) {
    for (int k = 0; k < LANES; k += 4) {
        long colour = (c + k) / 16, row = (c + k) % 16 / 4;
        memcpy(out + ((colour * h + y) * 4 + row) * 4 * w + 4 * x, (float *)&z + k, 4 * sizeof(float));
    }
}
