/* 3x3 convolutions with a border of zeros, forward and backward, by AMX; convolution.py compiles this for IN input and
   OUT output channels, multiples of 16. Images are bfloat16, height x width x channels; sums are float.

   Forward works as in nanosr_amx.c: the three taps of a kernel's row are 3 IN consecutive values, so a tile holds 32 of
   them for 16 pixels, and nothing is rearranged. Tiles load fast only from multiples of 64 bytes, so even and odd
   pixels have separate tiles. If a pixel takes an odd number of half cache lines, tiles of odd pixels begin half a line
   early, and their kernels begin with as many zeros. The input's gradient is computed in the same way, with the kernels
   rotated by 180 degrees. The weights' gradient sums over pixels, 32 per tile row: outputs' gradients, transposed,
   times inputs in pairs of pixels, once for pairs that begin at even pixels and once for those that begin at odd ones.

   Each thread takes one image at a time and copies its data to a private buffer that fits its cache. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "tiles.h"
#include "vectors.h"

enum { MOST = IN > OUT ? IN : OUT, TAPS = 9, WEIGHTS = OUT * IN * TAPS };

#define STEPS(channels) ((3 * (channels) + DEPTH - 1) / DEPTH) /* tiles that hold a kernel's row */
#define PART(channels) (3 * STEPS(channels) * DEPTH * TILE)   /* numbers of the kernels of 16 output channels */
#define EARLY(channels) ((channels) % DEPTH)                  /* how much earlier an odd pixel's values begin */

/* Sizes of an image and of its copies, in numbers. */
struct size {
    long h, w, columns, chunks, pairs; /* columns: of the copy with a border, even; chunks: of 32 pixels */
};

static long up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

static struct size size_of(long h, long w) {
    struct size s = {h, w, up(w + 2, 2), up(w, DEPTH) / DEPTH, 0};
    s.pairs = s.chunks * TILE + 1;
    return s;
}

/* Two rows more than it has, and two tiles' width, are read to no effect. */
static long padded_size(struct size s, long channels) {
    return up(((s.h + 4) * s.columns + 4 * DEPTH) * channels, DEPTH);
}
static long paired_size(struct size s) { return 2 * (s.h + 2) * IN * s.pairs * 2; }
static long turned_size(struct size s) { return s.h * s.chunks * OUT * DEPTH; }

/* Kernels as `convolve` reads them: arrangement (even, odd), part of 16 output channels, row, step, pair, channel, 2.
   They map `from` channels to `to`. If `turned`, they are rotated for the input's gradient of the convolution that has
   these weights. All threads must call this together. */
ALWAYS_INLINE void arrange(number *u, const number *weight, int from, int to, int turned) {
#pragma omp for schedule(static)
    for (int part = 0; part < to / TILE; part++)
        for (int row = 0; row < 3; row++) {
            number *even = u + part * PART(from) + row * STEPS(from) * DEPTH * TILE;
            number *odd = even + to / TILE * PART(from);
            for (int value = 0; value < 3 * from; value++)
                for (int o = 0; o < TILE; o++) {
                    int tap = 3 * row + value / from, i = value % from, out = part * TILE + o;
                    int at = turned ? (i * to + out) * TAPS + TAPS - 1 - tap : (out * from + i) * TAPS + tap;
                    even[(value / 2 * TILE + o) * 2 + value % 2] = weight[at];
                }
            memcpy(odd + EARLY(from) * TILE, even, 3 * from * TILE * sizeof(number));
            memset(even + 3 * from * TILE, 0, EARLY(from) * TILE * sizeof(number));
            memset(odd, 0, EARLY(from) * TILE * sizeof(number));
        }
}

/* An image into the middle of its copy with a border. */
static void pad(number *copy, const number *image, struct size s, int channels) {
    for (long y = 0; y < s.h; y++)
        memcpy(copy + ((y + 1) * s.columns + 1) * channels, image + y * s.w * channels,
               s.w * channels * sizeof(number));
}

/* Add the products of a kernel tile and of pixel tiles in two rows to the sums in tiles `first` and `second`; a macro,
   since their numbers are part of the instructions. */
#define ADD_PRODUCTS(kernel, pixels, stride, first, second) \
    do {                                                    \
        _tile_loadd(7, kernel, 4 * TILE);                   \
        _tile_loadd(6, pixels, 4 * from);                   \
        _tile_dpbf16ps(first, 6, 7);                        \
        _tile_loadd(6, (pixels) + (stride), 4 * from);      \
        _tile_dpbf16ps(second, 6, 7);                       \
    } while (0)

/* The sums of 2 rows x 32 pixels x 16 output channels, and where they go. */
struct sums {
    float values[2][2][TILE][TILE]; /* row, even or odd, pixel, channel */
    vec bias;
    const number *other;
    number *z, *out;
    long rows, pixels;
};

/* Finish the pixels 2 j and 2 j + 1 of both rows: sums to z, and what follows from them to out, if anything does. */
ALWAYS_INLINE void finish(const struct sums *s, long j, long width, int channels, int then) {
    for (int row = 0; row < 2; row++)
        for (int odd = 0; odd < 2; odd++) {
            if (row >= s->rows || 2 * j + odd >= s->pixels) continue;
            const long at = (row * width + 2 * j + odd) * channels;
            const vec z = load(s->values[row][odd][j]) + s->bias;
            store_number(s->z + at, z);
            if (then != NOTHING) store_number(s->out + at, followed(z, s->other ? s->other + at : NULL, then));
        }
}

/* Convolve one image, from its copy with a border. The products leave the rest of the processor idle, so a share of the
   previous sums is finished between them. */
ALWAYS_INLINE void convolve(const number *in, const number *u, const float *bias, const number *other, number *z,
                            number *out, struct size s, int from, int to, int then) {
    const long stride = s.columns * from;
    const vec none = {};
    struct sums sums[2];
    int turn = 0;
    sums[1].rows = 0;
    for (int part = 0; part < to / TILE; part++)
        for (long y = 0; y < s.h; y += 2)
            for (long x = 0; x < s.w; x += 2 * TILE) {
                struct sums *now = &sums[turn], *before = &sums[turn ^= 1];
                const number *pixels = in + y * stride + x * from;
                const number *even = u + part * PART(from), *odd = even + to / TILE * PART(from);
                const long at = (y * s.w + x) * to + part * TILE;
                now->bias = bias ? load(bias + part * TILE) : none;
                now->z = z + at, now->out = out ? out + at : NULL, now->other = other ? other + at : NULL;
                now->rows = s.h - y < 2 ? s.h - y : 2;
                now->pixels = s.w - x < 2 * TILE ? s.w - x : 2 * TILE;
                long done = 0;
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
                for (int row = 0; row < 3; row++, pixels += stride)
                    for (int step = 0; step < STEPS(from); step++, even += DEPTH * TILE, odd += DEPTH * TILE) {
                        ADD_PRODUCTS(even, pixels + step * DEPTH, stride, 0, 1);
                        ADD_PRODUCTS(odd, pixels + from - EARLY(from) + step * DEPTH, stride, 2, 3);
                        if (done < TILE) finish(before, done++, s.w, to, then);
                    }
                while (done < TILE) finish(before, done++, s.w, to, then);
                _tile_stored(0, now->values[0][0], 4 * TILE);
                _tile_stored(1, now->values[1][0], 4 * TILE);
                _tile_stored(2, now->values[0][1], 4 * TILE);
                _tile_stored(3, now->values[1][1], 4 * TILE);
            }
    for (long j = 0; j < TILE; j++) finish(&sums[turn ^ 1], j, s.w, to, then);
}

static inline __m512i widened(const number *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }

/* Sixteen channels of two pixels, one by one. */
static inline __m512i pair(const number *p, const number *next) {
    return _mm512_or_si512(widened(p), _mm512_slli_epi32(widened(next), 16));
}

/* Inputs as pairs of pixels: first at even or odd, row, 16 channels, pair, channel, 2. Takes the copy with a border. */
static void pair_up(number *paired, const number *in, struct size s) {
    for (int first = 0; first < 2; first++)
        for (long y = 0; y < s.h + 2; y++)
            for (int part = 0; part < IN / TILE; part++) {
                number *out = paired + ((first * (s.h + 2) + y) * (IN / TILE) + part) * s.pairs * DEPTH;
                const number *row = in + y * s.columns * IN + part * TILE;
                for (long x = first; x + 1 < s.columns && x / 2 < s.pairs; x += 2)
                    _mm512_storeu_si512(out + x / 2 * DEPTH, pair(row + x * IN, row + (x + 1) * IN));
            }
}

/* Outputs' gradients transposed: row, chunk of 32 pixels, channel, pixel; zero beyond the image. */
static void turn(number *turned, const number *gradient, struct size s) {
    static const number zeros[TILE];
    for (long y = 0; y < s.h; y++)
        for (long x = 0; x < s.w; x += DEPTH)
            for (int part = 0; part < OUT / TILE; part++) {
                uint32_t block[TILE][TILE], *out = (uint32_t *)turned;
                out += ((y * s.chunks + x / DEPTH) * (OUT / TILE) + part) * TILE * TILE;
                for (int i = 0; i < TILE; i++) {
                    const number *p = gradient + (y * s.w + x + 2 * i) * OUT + part * TILE;
                    long left = s.w - x - 2 * i;
                    _mm512_storeu_si512(block[i], pair(left > 0 ? p : zeros, left > 1 ? p + OUT : zeros));
                }
                for (int c = 0; c < TILE; c++)
                    for (int i = 0; i < TILE; i++) out[c * TILE + i] = block[i][c];
            }
}

/* Load or store the sums, 16 x 16 each, of the first tap in tiles 0 … 2 and of the second in tiles 3 … 5. */
#define MOVE_SUMS(move)                                                  \
    do {                                                                 \
        move(0, sums[0], 4 * IN);                                        \
        if (parts > 1) move(1, sums[0] + TILE * IN, 4 * IN);             \
        if (parts > 2) move(2, sums[0] + 2 * TILE * IN, 4 * IN);         \
        if (taps > 1) move(3, sums[1], 4 * IN);                          \
        if (taps > 1 && parts > 1) move(4, sums[1] + TILE * IN, 4 * IN); \
        if (taps > 1 && parts > 2) move(5, sums[1] + 2 * TILE * IN, 4 * IN); \
    } while (0)

/* Add the products of a tile of gradients with the pairs of one or both taps. */
#define ADD_GRADIENT_PRODUCTS(gradients, first, second) \
    do {                                                \
        _tile_loadd(6, gradients, 4 * TILE);            \
        _tile_loadd(7, b, 4 * TILE);                    \
        _tile_dpbf16ps(first, 6, 7);                    \
        if (taps > 1) {                                 \
            _tile_loadd(7, other, 4 * TILE);            \
            _tile_dpbf16ps(second, 6, 7);               \
        }                                               \
    } while (0)

/* The next image's arrays, prefetched into the cache in small steps: a share of each array's `bytes` at every call. */
enum { WANTED = 4, GROUPS = 5 };
struct wanted {
    const char *at[WANTED];
    long bytes, share, done;
};

static struct wanted wanted_of(const number *const *at, long numbers, long rows) {
    const long calls = rows * (IN / TILE) * GROUPS * ((OUT / TILE + 2) / 3);
    struct wanted w = {.bytes = numbers * sizeof(number)};
    w.share = up(w.bytes / calls, 64);
    for (int i = 0; i < WANTED; i++) w.at[i] = (const char *)at[i];
    return w;
}

ALWAYS_INLINE void fetch(struct wanted *w) {
    for (long end = w->done + w->share; w->done < end && w->done < w->bytes; w->done += 64)
        for (int i = 0; i < WANTED; i++)
            if (w->at[i]) _mm_prefetch(w->at[i] + w->done, _MM_HINT_T1);
}

/* Add an image's products to the sums of one or two taps, 16 input channels and 16 `parts` output channels; `inputs` is
   where each tap's pairs begin. With each row, a part of the next image's arrays is prefetched. */
ALWAYS_INLINE void add_weight_products(float *const *sums, const number *const *inputs, const number *turned,
                                       struct size s, int taps, int parts, struct wanted *wanted) {
    const long row = IN / TILE * s.pairs * DEPTH;
    MOVE_SUMS(_tile_loadd);
    for (long y = 0; y < s.h; y++) {
        fetch(wanted);
        for (long chunk = 0; chunk < s.chunks; chunk++) {
            const number *a = turned + (y * s.chunks + chunk) * OUT * DEPTH;
            const number *b = inputs[0] + y * row + chunk * TILE * DEPTH;
            const number *other = inputs[taps - 1] + y * row + chunk * TILE * DEPTH;
            ADD_GRADIENT_PRODUCTS(a, 0, 3);
            if (parts > 1) ADD_GRADIENT_PRODUCTS(a + TILE * DEPTH, 1, 4);
            if (parts > 2) ADD_GRADIENT_PRODUCTS(a + 2 * TILE * DEPTH, 2, 5);
        }
    }
    MOVE_SUMS(_tile_stored);
}

/* Add an image's weight gradients to `sums`, tap x OUT x IN. */
static void add_weight_gradients(float *sums, const number *paired, const number *turned, struct size s,
                                 struct wanted *wanted) {
    /* Taps grouped by their place in a row: the pairs of pixels of a group all begin at even or all at odd pixels. */
    static const int pairs_of_taps[GROUPS][2] = {{0, 2}, {3, 5}, {6, 8}, {1, 4}, {7, -1}};
    for (int part = 0; part < IN / TILE; part++)
        for (int group = 0; group < GROUPS; group++)
            for (int o = 0; o < OUT / TILE; o += 3) {
                float *to[2];
                const number *from[2];
                int taps = pairs_of_taps[group][1] < 0 ? 1 : 2, parts = OUT / TILE - o < 3 ? OUT / TILE - o : 3;
                for (int i = 0; i < taps; i++) {
                    int tap = pairs_of_taps[group][i];
                    to[i] = sums + (tap * OUT + o * TILE) * IN + part * TILE;
                    from[i] = paired + ((tap % 3 % 2 * (s.h + 2) + tap / 3) * (IN / TILE) + part) * s.pairs * DEPTH;
                    from[i] += tap % 3 / 2 * DEPTH;
                }
                const number *gradients = turned + o * TILE * DEPTH;
                if (taps == 2 && parts == 3) add_weight_products(to, from, gradients, s, 2, 3, wanted);
                else if (taps == 2 && parts == 2) add_weight_products(to, from, gradients, s, 2, 2, wanted);
                else if (taps == 2) add_weight_products(to, from, gradients, s, 2, 1, wanted);
                else if (parts == 3) add_weight_products(to, from, gradients, s, 1, 3, wanted);
                else if (parts == 2) add_weight_products(to, from, gradients, s, 1, 2, wanted);
                else add_weight_products(to, from, gradients, s, 1, 1, wanted);
            }
}

static void add_bias_gradients(float *sums, const number *gradient, long pixels) {
    for (int part = 0; part < OUT; part += TILE) {
        vec sum = load(sums + part);
        for (long p = 0; p < pixels; p++) sum += load_number(gradient + p * OUT + part);
        store(sums + part, sum);
    }
}

/* Store in `all` the whole gradient of the sums z, from that of the operation after them and that of z itself (NULL:
   none). ATTENTION also stores the gradient of its other input in grad_other. */
ALWAYS_INLINE void through(number *all, const number *of_out, const number *of_z, const number *z, const number *other,
                           number *grad_other, long numbers, int then) {
    for (long i = 0; i < numbers; i += LANES) {
        const vec gradient = load_number(of_out + i), x = load_number(z + i), s = sigmoid(x);
        vec result;
        if (then == SILU) result = gradient * s * (1.f + x * (1.f - s));
        else {
            const vec factor = s - .5f;
            result = gradient * (factor + (x + load_number(other + i)) * s * (1.f - s));
            store_number(grad_other + i, gradient * factor);
        }
        if (of_z) result += load_number(of_z + i);
        store_number(all + i, result);
    }
}

/* Room for so many numbers, at the beginning of a cache line. */
static number *room(long numbers) { return aligned_alloc(64, up(numbers * sizeof(number), 64)); }

/* x: n images of h x w x IN; weight: OUT x IN x 3 x 3; bias: OUT, or NULL; z, the sums, and other and out, which are
   NULL if nothing follows: n images of h x w x OUT. Returns 0, or 1 without memory. */
int forward(const number *x, const number *weight, const float *bias, const number *other, number *z, number *out,
            long n, long h, long w, int then, int threads) {
    const struct size s = size_of(h, w);
    const long each = padded_size(s, IN), size = h * w * OUT;
    number *u = room(2L * (OUT / TILE) * PART(IN)), *copies = room(threads * each);
    if (!u || !copies) return free(u), free(copies), 1;
#pragma omp parallel num_threads(threads)
    {
        number *copy = copies + omp_get_thread_num() * each;
        memset(copy, 0, each * sizeof(number));
        configure();
        arrange(u, weight, IN, OUT, 0);
#pragma omp for schedule(static)
        for (long k = 0; k < n; k++) {
            pad(copy, x + k * h * w * IN, s, IN);
            number *sums = z + k * size;
            if (then == NOTHING) convolve(copy, u, bias, NULL, sums, NULL, s, IN, OUT, NOTHING);
            if (then == SILU) convolve(copy, u, bias, NULL, sums, out + k * size, s, IN, OUT, SILU);
            if (then == ATTENTION)
                convolve(copy, u, bias, other + k * size, sums, out + k * size, s, IN, OUT, ATTENTION);
        }
        _tile_release();
    }
    free(u), free(copies);
    return 0;
}

/* Compute the gradients of `forward` from those of out and z: of x (unless grad_x is NULL), weight, bias, and other if
   there is one. One of of_out and of_z may be NULL; of_out is NULL if nothing follows. */
int backward(const number *of_out, const number *of_z, const number *x, const number *weight, const number *other,
             const number *z, number *grad_x, float *grad_weight, float *grad_bias, number *grad_other, long n, long h,
             long w, int then, int threads) {
    const struct size s = size_of(h, w);
    const long size = h * w * OUT, copy_size = padded_size(s, MOST);
    const long each = 2 * copy_size + paired_size(s) + turned_size(s) + up(size, DEPTH);
    number *u = room(2L * (IN / TILE) * PART(OUT)), *rooms = room(threads * each);
    float *sums = (float *)room(2L * threads * (WEIGHTS + OUT));
    if (!u || !rooms || !sums) return free(u), free(rooms), free(sums), 1;
#pragma omp parallel num_threads(threads)
    {
        number *copy = rooms + omp_get_thread_num() * each, *copy_of_x = copy + copy_size;
        number *paired = copy_of_x + copy_size, *turned = paired + paired_size(s), *all = turned + turned_size(s);
        float *own = sums + (long)omp_get_thread_num() * (WEIGHTS + OUT);
        memset(copy, 0, each * sizeof(number));
        memset(own, 0, (WEIGHTS + OUT) * sizeof(float));
        configure();
        if (grad_x) arrange(u, weight, OUT, IN, 1);
#pragma omp for schedule(static)
        for (long k = 0; k < n; k++) {
            const long at = k * size;
            const number *gradient = of_out ? all : of_z + at, *more = of_z ? of_z + at : NULL;
            if (of_out && then == SILU) through(all, of_out + at, more, z + at, NULL, NULL, size, SILU);
            if (of_out && then == ATTENTION)
                through(all, of_out + at, more, z + at, other + at, grad_other + at, size, ATTENTION);
            if (grad_x) {
                pad(copy, gradient, s, OUT);
                convolve(copy, u, NULL, NULL, grad_x + k * h * w * IN, NULL, s, OUT, IN, NOTHING);
            }
            pad(copy_of_x, x + k * h * w * IN, s, IN);
            pair_up(paired, copy_of_x, s);
            turn(turned, gradient, s);
            const number *next[WANTED] = {NULL};
            if (k + 1 < n) {
                next[0] = x + (k + 1) * h * w * IN;
                next[1] = (of_out ? of_out : of_z) + at + size;
                next[2] = of_out ? z + at + size : NULL;
                next[3] = grad_x ? grad_x + (k + 1) * h * w * IN : NULL;
            }
            struct wanted wanted = wanted_of(next, h * w * (IN < OUT ? IN : OUT), h);
            add_weight_gradients(own, paired, turned, s, &wanted);
            add_bias_gradients(own + WEIGHTS, gradient, h * w);
        }
        _tile_release();
#pragma omp for schedule(static)
        for (int o = 0; o < OUT; o++) {
            grad_bias[o] = 0;
            memset(grad_weight + o * IN * TAPS, 0, IN * TAPS * sizeof(float));
            for (int t = 0; t < omp_get_num_threads(); t++) { /* may be fewer than asked for */
                const float *part = sums + (long)t * (WEIGHTS + OUT);
                grad_bias[o] += part[WEIGHTS + o];
                for (int tap = 0; tap < TAPS; tap++)
                    for (int i = 0; i < IN; i++)
                        grad_weight[(o * IN + i) * TAPS + tap] += part[(tap * OUT + o) * IN + i];
            }
        }
    }
    free(u), free(rooms), free(sums);
    return 0;
}
