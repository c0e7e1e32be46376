/* Structural similarity of two interleaved 8-bit RGB images, summed over every place of the window: see metrics.py.
 *
 * WINDOW is the window's side, `weights` its HALF + 1 first weights, the middle one halved: the window is symmetric, so
 * rows and columns are summed in pairs, the middle one with itself. Sums of pairs and their products are whole numbers
 * below 2^24, exact in float. Strides are in bytes; `means` has room for 4 x 3 width values. */
#include <stdint.h>

#define HALF (WINDOW / 2)
#define CHANNELS 3

/* Weighted sums over the window's rows of x, y, x y and x x + y y, for each of `count` values in a row. */
static void over_rows(const uint8_t *sr, const uint8_t *hr, long sr_stride, long hr_stride, long count,
                      const double *weights, double *means)
{
#pragma omp simd
    for (long j = 0; j < count; j++) {
        double x = 0, y = 0, products = 0, squares = 0;
        for (int i = 0; i <= HALF; i++) {
            const float x0 = sr[i * sr_stride + j], x1 = sr[(WINDOW - 1 - i) * sr_stride + j];
            const float y0 = hr[i * hr_stride + j], y1 = hr[(WINDOW - 1 - i) * hr_stride + j];
            x += weights[i] * (double)(x0 + x1);
            y += weights[i] * (double)(y0 + y1);
            products += weights[i] * (double)(x0 * y0 + x1 * y1);
            squares += weights[i] * (double)(x0 * x0 + x1 * x1 + y0 * y0 + y1 * y1);
        }
        means[j] = x;
        means[count + j] = y;
        means[2 * count + j] = products;
        means[3 * count + j] = squares;
    }
}

static inline double over_columns(const double *row, const double *weights)
{
    double sum = 0;
    for (int i = 0; i <= HALF; i++)
        sum += weights[i] * (row[CHANNELS * i] + row[CHANNELS * (WINDOW - 1 - i)]);
    return sum;
}

double similarity(const uint8_t *sr, const uint8_t *hr, long sr_stride, long hr_stride, long height, long width,
                  const double *weights, double c1, double c2, double *means)
{
    const long count = CHANNELS * width, places = CHANNELS * (width - WINDOW + 1);
    double total = 0;
    for (long top = 0; top + WINDOW <= height; top++) {
        over_rows(sr + top * sr_stride, hr + top * hr_stride, sr_stride, hr_stride, count, weights, means);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < places; j++) {
            const double mu_x = over_columns(means + j, weights), mu_y = over_columns(means + count + j, weights);
            const double mu_xy = mu_x * mu_y, mu_squares = mu_x * mu_x + mu_y * mu_y;
            const double covariance = over_columns(means + 2 * count + j, weights) - mu_xy;
            const double variances = over_columns(means + 3 * count + j, weights) - mu_squares;
            sum += (2 * mu_xy + c1) * (2 * covariance + c2) / ((mu_squares + c1) * (variances + c2));
        }
        total += sum;
    }
    return total;
}
