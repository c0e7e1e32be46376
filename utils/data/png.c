/* Undoes the filters of a PNG's rows (W3C, PNG Specification, chapter 9): 8-bit RGB, not interlaced.
 *
 * `rows` are height times a filter's number and 3 width bytes; `image` has room for height x width x 3. Each byte is the
 * difference to what its neighbours say: the pixel to the left, the one above, and the one above that to the left. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS 3

enum filter { NONE, LEFT, ABOVE, MEAN, PAETH };

typedef uint8_t bytes __attribute__((vector_size(8)));
typedef int16_t pixel __attribute__((vector_size(16)));

static inline pixel load(const uint8_t *from)
{
    const uint64_t values = from[0] | (uint64_t)from[1] << 8 | (uint64_t)from[2] << 16;
    return __builtin_convertvector((bytes)values, pixel);
}

static inline void store(uint8_t *to, pixel values)
{
    const uint64_t low = (uint64_t)__builtin_convertvector(values, bytes);
    to[0] = (uint8_t)low;
    to[1] = (uint8_t)(low >> 8);
    to[2] = (uint8_t)(low >> 16);
}

static inline pixel magnitude(pixel x)
{
    const pixel negative = x >> 15;
    return (x ^ negative) - negative;
}

static inline pixel choose(pixel mask, pixel yes, pixel no)
{
    return (mask & yes) | (~mask & no);
}

static inline pixel nearest(pixel left, pixel above, pixel corner)
{
    const pixel down = above - corner, right = left - corner;
    const pixel to_left = magnitude(down), to_above = magnitude(right), to_corner = magnitude(down + right);
    const pixel other = choose(to_above <= to_corner, above, corner);
    return choose((to_left <= to_above) & (to_left <= to_corner), left, other);
}

/* What depends on the pixel to the left goes pixel by pixel, with that one kept in a register. */
#define PIXEL_BY_PIXEL(prediction)                                                                                     \
    for (long i = 0; i < count; i += CHANNELS) {                                                                       \
        const pixel up = load(above + i);                                                                              \
        left = (load(row + i) + (prediction)) & 255;                                                                   \
        corner = up;                                                                                                   \
        store(out + i, left);                                                                                          \
    }

static int unfilter_row(int filter, const uint8_t *row, const uint8_t *above, long count, uint8_t *out)
{
    pixel left = {0}, corner = {0};
    switch (filter) {
    case NONE:
        memcpy(out, row, count);
        return 0;
    case LEFT:
        PIXEL_BY_PIXEL(left)
        return 0;
    case ABOVE:
        for (long i = 0; i < count; i++)
            out[i] = (uint8_t)(row[i] + above[i]);
        return 0;
    case MEAN:
        PIXEL_BY_PIXEL((left + up) >> 1)
        return 0;
    case PAETH:
        PIXEL_BY_PIXEL(nearest(left, up, corner))
        return 0;
    default:
        return 1;
    }
}

/* Returns 0; 1 for a filter that does not exist, or without memory. */
int unfilter(const uint8_t *rows, long height, long width, uint8_t *image)
{
    const long count = CHANNELS * width;
    uint8_t *nothing = calloc(count, 1);
    int failed = !nothing;
    const uint8_t *above = nothing;
    for (long y = 0; y < height && !failed; y++) {
        const uint8_t *row = rows + y * (count + 1);
        failed = unfilter_row(row[0], row + 1, above, count, image + y * count);
        above = image + y * count;
    }
    free(nothing);
    return failed;
}
