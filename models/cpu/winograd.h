/* Winograd's F(4x4, 3x3): tiles of 6 x 6 inputs give 4 x 4 outputs by products at 36 points. Each function transforms a
   row or a column of vectors; it is called for both. Points are 0, +-NEAR, +-FAR and infinity, which the Python file
   beside each C file defines. To be included after vectors.h. */
enum { TAKEN = 6, GIVEN = 4, POINTS = TAKEN * TAKEN };

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

/* Kernels to points. */
static inline void kernel_1d(const vec g[3], vec u[TAKEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR, of_zero = 1 / (a * b);
    const float of_near = 1 / (2 * a * (a - b)), of_far = 1 / (2 * b * (b - a));
    const vec near_even = of_near * (g[0] + a * g[2]), near_odd = of_near * NEAR * g[1];
    const vec far_even = of_far * (g[0] + b * g[2]), far_odd = of_far * FAR * g[1];
    u[0] = of_zero * g[0];
    u[1] = near_even + near_odd;
    u[2] = near_even - near_odd;
    u[3] = far_even + far_odd;
    u[4] = far_even - far_odd;
    u[5] = g[2];
}

/* Gradients go the other way, by the transposed matrices: the inputs' from their points, … */
static inline void input_gradient_1d(const vec v[TAKEN], vec d[TAKEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR;
    const vec near_sum = v[1] + v[2], near_difference = NEAR * (v[1] - v[2]);
    const vec far_sum = v[3] + v[4], far_difference = FAR * (v[3] - v[4]);
    d[0] = a * b * v[0];
    d[1] = a * b * v[5] - b * near_difference - a * far_difference;
    d[2] = -(a + b) * v[0] - b * near_sum - a * far_sum;
    d[3] = near_difference + far_difference - (a + b) * v[5];
    d[4] = v[0] + near_sum + far_sum;
    d[5] = v[5];
}

/* … the points' from the outputs', … */
static inline void output_gradient_1d(const vec o[GIVEN], vec m[TAKEN]) {
    const float a = NEAR * NEAR, b = FAR * FAR;
    const vec near_even = o[0] + a * o[2], near_odd = NEAR * (o[1] + a * o[3]);
    const vec far_even = o[0] + b * o[2], far_odd = FAR * (o[1] + b * o[3]);
    m[0] = o[0];
    m[1] = near_even + near_odd;
    m[2] = near_even - near_odd;
    m[3] = far_even + far_odd;
    m[4] = far_even - far_odd;
    m[5] = o[3];
}

/* … and the kernels' from their points. */
static inline void kernel_gradient_1d(const vec u[TAKEN], vec g[3]) {
    const float a = NEAR * NEAR, b = FAR * FAR, of_zero = 1 / (a * b);
    const float of_near = 1 / (2 * a * (a - b)), of_far = 1 / (2 * b * (b - a));
    const vec near_sum = of_near * (u[1] + u[2]), near_difference = of_near * NEAR * (u[1] - u[2]);
    const vec far_sum = of_far * (u[3] + u[4]), far_difference = of_far * FAR * (u[3] - u[4]);
    g[0] = of_zero * u[0] + near_sum + far_sum;
    g[1] = near_difference + far_difference;
    g[2] = a * near_sum + b * far_sum + u[5];
}
