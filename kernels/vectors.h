/* Shared by the C files: vectors of floats, the numbers that maps consist of, and the operations after a convolution.
   compiler.py defines FLOAT32, FLOAT16 or BFLOAT16, and NOTHING, SILU … as numbers. */
#include <stdint.h>
#include <string.h>

#if defined __AVX512F__ || (defined FLOAT16 && defined __F16C__)
#include <immintrin.h>
#endif
#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }

/* number: what maps, tiles and kernels are made of; everything between is computed in float */
#if defined BFLOAT16 && !defined __AVX512BF16__
#ifndef ANY_PROCESSOR
#error "bfloat16 takes a processor with AVX512_BF16"
#endif
typedef uint16_t number;
typedef uint16_t numbers __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t bits __attribute__((vector_size(LANES * 4)));
static inline vec load_number(const number *p) {
    return (vec)(__builtin_convertvector(*(const numbers *)p, bits) << 16);
}
/* round to nearest, ties to even; NaN stays NaN */
static inline void store_number(number *p, vec v) {
    const bits b = (bits)v, none = (bits)(v != v);
    const bits nearest = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    *(numbers *)p = __builtin_convertvector((nearest & ~none) | (0x7fc0 & none), numbers);
}
#elif defined BFLOAT16
typedef uint16_t number;
static inline vec load_number(const number *p) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
static inline void store_number(number *p, vec v) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
#elif defined FLOAT16 && defined __AVX512F__
typedef uint16_t number;
static inline vec load_number(const number *p) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline void store_number(number *p, vec v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined FLOAT16 && defined __F16C__
typedef uint16_t number;
static inline vec load_number(const number *p) { return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline void store_number(number *p, vec v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined FLOAT16
#ifndef __aarch64__
#error "float16 takes a processor with F16C, or a 64-bit ARM"
#endif
typedef _Float16 number;
typedef number numbers __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
static inline vec load_number(const number *p) { return __builtin_convertvector(*(const numbers *)p, vec); }
static inline void store_number(number *p, vec v) { *(numbers *)p = __builtin_convertvector(v, numbers); }
#else
typedef float number;
static inline vec load_number(const number *p) { return load(p); }
static inline void store_number(number *p, vec v) { store(p, v); }
#endif

/* 2^f by its Taylor series, on [-1/2, 1/2] */
static inline vec power(vec f) {
    vec p = .0013333558f + f * .000154035f;
    p = .0096181291f + f * p;
    p = .0555041087f + f * p;
    p = .240226507f + f * p;
    p = .693147181f + f * p;
    return 1.f + f * p;
}

#ifndef __AVX512F__
static inline vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }
#endif

/* 1 / (1 + 2^y), y = -x / ln 2; y is clamped so that 2^y is a normal number, since others need slow microcode. */
static inline vec sigmoid(vec x) {
    const vec zero = {}, most = zero + 126.f, y = x * -1.44269504f;
#ifdef __AVX512F__
    const __m512 held = _mm512_max_ps(_mm512_min_ps((__m512)y, (__m512)most), (__m512)-most);
    const __m512 whole = _mm512_roundscale_ps(held, 0);
    const vec d = 1.f + (vec)_mm512_scalef_ps((__m512)power((vec)(held - whole)), whole);
    const vec near = (vec)_mm512_rcp14_ps((__m512)d); /* and a Newton step: a division takes many times as long */
    return near * (2.f - d * near);
#else
    vec held = choose(y < most, y, most);
    held = choose(held > -most, held, -most);
    const vec shifted = held + 12582912.f; /* 1.5 x 2^23: the lowest bits hold y rounded */
    return 1.f / (1.f + (vec)((ivec)power(held - (shifted - 12582912.f)) + ((ivec)shifted << 23)));
#endif
}

/* Apply the operation after a convolution to its outputs; `other` is the second input of ATTENTION and ADD. */
static inline vec followed(vec z, const number *other, int then) {
    if (then == SILU) return z * sigmoid(z);
    if (then == ATTENTION) return (z + load_number(other)) * (sigmoid(z) - .5f);
    if (then == ADD) return z + load_number(other);
    return z;
}
