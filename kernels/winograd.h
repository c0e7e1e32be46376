/* Winograd's F(GIVEN x GIVEN, 3x3): tiles of TAKEN x TAKEN inputs give GIVEN x GIVEN outputs by products at POINTS.
   Each function transforms a row or a column of vectors; it is called for both. Points are 0, +-NEAR, +-FAR, for 6
   outputs also +-FARTHEST, and infinity; compiler.py defines them. Include this after vectors.h. */
enum { TAKEN = GIVEN + 2, POINTS = TAKEN * TAKEN };

/* Transform `from` x `from` values by `line`, the columns first, then the rows. `value` is an expression of y and x;
   `take` is a statement that uses `result`, at the first `rows` x `columns` of the `to` x `to` places (y, x). */
#define TRANSFORM(from, to, line, value, rows, columns, take)                \
    do {                                                                     \
        vec half[to][from], before[from], after[to];                         \
        for (int x = 0; x < (from); x++) {                                   \
            for (int y = 0; y < (from); y++) before[y] = (value);            \
            line(before, after);                                             \
            for (int y = 0; y < (to); y++) half[y][x] = after[y];            \
        }                                                                    \
        for (int y = 0; y < (rows); y++) {                                   \
            line(half[y], after);                                            \
            for (int x = 0; x < (columns); x++) {                            \
                const vec result = after[x];                                 \
                take;                                                        \
            }                                                                \
        }                                                                    \
    } while (0)

#if GIVEN == 4
/* Inputs to points. */
static inline void input_1d(const vec d[TAKEN], vec v[TAKEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR;
    vec near_even = d[4] - b * d[2], near_odd = NEAR * (d[3] - b * d[1]);
    vec far_even = d[4] - a * d[2], far_odd = FAR * (d[3] - a * d[1]);
    v[0] = a * b * d[0] - (a + b) * d[2] + d[4];
    v[1] = near_even + near_odd;
    v[2] = near_even - near_odd;
    v[3] = far_even + far_odd;
    v[4] = far_even - far_odd;
    v[5] = a * b * d[1] - (a + b) * d[3] + d[5];
}

/* Points to outputs. */
static inline void output_1d(const vec m[TAKEN], vec o[GIVEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR;
    vec near_sum = m[1] + m[2], near_difference = NEAR * (m[1] - m[2]);
    vec far_sum = m[3] + m[4], far_difference = FAR * (m[3] - m[4]);
    o[0] = m[0] + near_sum + far_sum;
    o[1] = near_difference + far_difference;
    o[2] = a * near_sum + b * far_sum;
    o[3] = a * near_difference + b * far_difference + m[5];
}

#elif GIVEN == 6
/* Transform inputs to the points +-point; `other` and `another` are the squares of the other points. */
static inline void pair_of_points(const vec d[TAKEN], float point, float other, float another, vec v[2]) {
    const vec even = d[6] - (other + another) * d[4] + other * another * d[2];
    const vec odd = point * (d[5] - (other + another) * d[3] + other * another * d[1]);
    v[0] = even + odd;
    v[1] = even - odd;
}

static inline void input_1d(const vec d[TAKEN], vec v[TAKEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR, c = FARTHEST * FARTHEST;
    v[0] = d[6] - (a + b + c) * d[4] + (a * b + a * c + b * c) * d[2] - a * b * c * d[0];
    pair_of_points(d, NEAR, b, c, v + 1);
    pair_of_points(d, FAR, a, c, v + 3);
    pair_of_points(d, FARTHEST, a, b, v + 5);
    v[7] = d[7] - (a + b + c) * d[5] + (a * b + a * c + b * c) * d[3] - a * b * c * d[1];
}

static inline void output_1d(const vec m[TAKEN], vec o[GIVEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR, c = FARTHEST * FARTHEST;
    const vec near_sum = m[1] + m[2], near_difference = NEAR * (m[1] - m[2]);
    const vec far_sum = m[3] + m[4], far_difference = FAR * (m[3] - m[4]);
    const vec farthest_sum = m[5] + m[6], farthest_difference = FARTHEST * (m[5] - m[6]);
    o[0] = m[0] + near_sum + far_sum + farthest_sum;
    o[1] = near_difference + far_difference + farthest_difference;
    o[2] = a * near_sum + b * far_sum + c * farthest_sum;
    o[3] = a * near_difference + b * far_difference + c * farthest_difference;
    o[4] = a * a * near_sum + b * b * far_sum + c * c * farthest_sum;
    o[5] = a * a * near_difference + b * b * far_difference + c * c * farthest_difference + m[7];
}
#endif
