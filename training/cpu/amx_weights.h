/* The gradients of a convolution's weights and bias: what convolution.c includes, in its terms. */

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

/* What the next image wants, fetched into the cache little by little: a share of `bytes` of each at every call. */
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
   where each tap's pairs begin. Row by row, some of what is wanted next is fetched. */
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
    /* Taps at like places in a row: their pairs of pixels begin alike. */
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
