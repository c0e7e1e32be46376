/* The 3x3 convolutions of nanosr_amx.py, by AMX: tiles of 16 pixels x 32 values times tiles of 32 values x 16 output
   channels, both bfloat16, summed in float.

   Channels are last in memory. So the three taps of a kernel's row are 144 consecutive values of three neighbouring
   pixels, and nothing has to be rearranged. A pixel takes 96 bytes, but tiles load fast only from multiples of 64.
   So even and odd pixels have separate tiles, each of every second pixel. The 144 values of an even pixel begin at such
   a multiple and are followed by 16 values with zero weights. Those of an odd pixel begin 16 values later and are
   preceded by 16 values with zero weights. Kernels are stored in both arrangements.

   Maps have a border of one zero pixel, rows of a multiple of 64 bytes, and some readable zeros after their end. */
#include "tiles.h"

#include "maps.h"

enum { STEPS = 15, KERNEL = STEPS * 2 * TILE * TILE };  /* numbers of a part's kernels in an arrangement */
enum { GROUPS = 2, SPAN = 2 * GROUPS * TILE, SHARE = (SPAN + STEPS - 1) / STEPS };  /* pixels done at once */

/* The sums of SPAN pixels x LANES channels, even ones first, and where they go. */
struct sums {
    float values[2][GROUPS * TILE][LANES];
    vec bias;
    const number *other;
    void *out;
    long pixels, y, x;
    int channel;
};

/* Finish pixels from … to - 1. */
ALWAYS_INLINE void finish(const struct sums *s, long from, long to, long h, long w, int then) {
    for (long i = from; i < to && i < s->pixels; i++) {
        vec z = followed(load(s->values[i & 1][i >> 1]) + s->bias, s->other + i * C, then);
        if (then == SHUFFLE) store_shuffled(s->out, z, s->channel, h, w, s->y, s->x + i);
        else store_number((number *)s->out + i * C, z);
    }
}

/* Add the products of one kernel tile and `groups` pixel tiles to the sums in tiles `first` and `second`; a macro, since
   their numbers are part of the instructions. */
#define ADD_PRODUCTS(kernel, pixels, first, second)             \
    do {                                                        \
        _tile_loadd(7, kernel, 4 * TILE);                       \
        _tile_loadd(6, pixels, 4 * C);                          \
        _tile_dpbf16ps(first, 6, 7);                            \
        if (groups > 1) {                                       \
            _tile_loadd(6, (pixels) + 2 * TILE * C, 4 * C);     \
            _tile_dpbf16ps(second, 6, 7);                       \
        }                                                       \
    } while (0)

/* Sum the products of `groups` tiles of even and of odd pixels; the first pixel's first tap is at `in`. The products
   leave the rest of the processor idle, so a share of the previous sums is finished between them. */
ALWAYS_INLINE void multiply(const number *in, long stride, const number *even, const number *odd, int groups,
                            struct sums *now, const struct sums *before, long h, long w, int then) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    long done = 0;
    for (int row = 0; row < 3; row++, in += stride) {
        for (int step = 0; step < STEPS / 3; step++, even += KERNEL / STEPS, odd += KERNEL / STEPS) {
            ADD_PRODUCTS(even, in + step * 2 * TILE, 0, 1);
            ADD_PRODUCTS(odd, in + (step + 1) * 2 * TILE, 2, 3);
            finish(before, done, done + SHARE, h, w, then);
            done += SHARE;
        }
    }
    _tile_stored(0, now->values[0][0], 4 * LANES);
    _tile_stored(2, now->values[1][0], 4 * LANES);
    if (groups > 1) {
        _tile_stored(1, now->values[0][TILE], 4 * LANES);
        _tile_stored(3, now->values[1][TILE], 4 * LANES);
    }
}

/* Compute each row part by part of the output channels, so that a part's kernels stay in the L1 cache for the row. */
ALWAYS_INLINE void rows(const number *in, const number *u, const float *bias, const number *other, void *out, long h,
                        long w, long stride, int then) {
    struct sums sums[2];
    int turn = 0;
    sums[1].pixels = 0;
#pragma omp for schedule(dynamic, 8)
    for (long y = 0; y < h; y++)
        for (int part = 0; part < PARTS; part++)
            for (long x = 0; x < w; x += SPAN) {
                struct sums *now = &sums[turn], *before = &sums[turn ^= 1];
                const number *even = u + part * KERNEL, *odd = u + (PARTS + part) * KERNEL;
                long at = (y + 1) * stride + (x + 1) * C + part * LANES;
                now->bias = load(bias + part * LANES);
                now->other = other + at;
                now->out = then == SHUFFLE ? out : (number *)out + at;
                now->pixels = w - x < SPAN ? w - x : SPAN;
                now->y = y, now->x = x, now->channel = part * LANES;
                const number *first = in + y * stride + x * C;
                if (now->pixels > 2 * TILE) multiply(first, stride, even, odd, 2, now, before, h, w, then);
                else multiply(first, stride, even, odd, 1, now, before, h, w, then);
            }
    finish(&sums[turn ^ 1], 0, SPAN, h, w, then);
}

/* in, other, out: maps of h x w x C with their borders, `stride` numbers from row to row; out may be other, not in.
   u: kernels of 2 arrangements x PARTS x STEPS tiles. bias: C. */
void convolve(const number *in, const number *u, const float *bias, const number *other, void *out, long h, long w,
              long stride, int then, int threads) {
#pragma omp parallel num_threads(threads)
    {
        configure();
        if (then == NOTHING) rows(in, u, bias, other, out, h, w, stride, NOTHING);
        if (then == SILU) rows(in, u, bias, other, out, h, w, stride, SILU);
        if (then == ATTENTION) rows(in, u, bias, other, out, h, w, stride, ATTENTION);
        if (then == ADD) rows(in, u, bias, other, out, h, w, stride, ADD);
        if (then == SHUFFLE) rows(in, u, bias, other, out, h, w, stride, SHUFFLE);
        _tile_release();
    }
}
