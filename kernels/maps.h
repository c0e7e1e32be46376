/* Feature maps of NanoSR's convolutions in C. The Python code that compiles a file defines CHANNELS and the macros of
   vectors.h. */
#include "vectors.h"

enum { C = CHANNELS, PARTS = C / LANES };

/* Channels c … c + LANES - 1 of LR pixel (y, x) to their places in the SR image of 3 x 4h x 4w. */
static inline void store_shuffled(float *out, vec z, int c, long h, long w, long y, long x) {
    for (int k = 0; k < LANES; k += 4) {
        long colour = (c + k) / 16, row = (c + k) % 16 / 4;
        memcpy(out + ((colour * h + y) * 4 + row) * 4 * w + 4 * x, (float *)&z + k, 4 * sizeof(float));
    }
}
