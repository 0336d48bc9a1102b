/* The kernel in both precisions for one kind of processor; VARIANT(x) is set by cpu.c. */

/* exp(x) for x <= 0, zero below the smallest normal number: 2^n times a polynomial of the rest.
 * Adding 1.5 * 2^23 (2^52) rounds to an integer and leaves it in the low bits. */
static ALWAYS_INLINE vec_float VARIANT(exp_float)(vec_float x) {
    const bits_float normal = x > -87.0f;
    x = (vec_float)((bits_float)x & normal);
    const vec_float shifted = x * 1.44269504088896341f + 12582912.0f;
    const vec_float n = shifted - 12582912.0f;
    const vec_float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec_float e = r * 1.9875691500e-4f + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = e * r * r + r + 1.0f;
    const bits_float power = ((bits_float)shifted << 23) + 0x3f800000;
    return (vec_float)((bits_float)(e * (vec_float)power) & normal);
}

static ALWAYS_INLINE vec_double VARIANT(exp_double)(vec_double x) {
    const bits_double normal = x > -708.0;
    x = (vec_double)((bits_double)x & normal);
    const vec_double shifted = x * 1.4426950408889634074 + 6755399441055744.0;
    const vec_double n = shifted - 6755399441055744.0;
    const vec_double r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6;
    vec_double e = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0; /* Taylor up to r^13 */
    e = e * r + 1.0 / 39916800.0;
    e = e * r + 1.0 / 3628800.0;
    e = e * r + 1.0 / 362880.0;
    e = e * r + 1.0 / 40320.0;
    e = e * r + 1.0 / 5040.0;
    e = e * r + 1.0 / 720.0;
    e = e * r + 1.0 / 120.0;
    e = e * r + 1.0 / 24.0;
    e = e * r + 1.0 / 6.0;
    e = e * r + 0.5;
    e = e * r * r + r + 1.0;
    const bits_double power = ((bits_double)shifted << 52) + 0x3ff0000000000000;
    return (vec_double)((bits_double)(e * (vec_double)power) & normal);
}

#define REAL float
#define LANES 8
#define VEC vec_float
#define BITS bits_float
#define COUNTING {0, 1, 2, 3, 4, 5, 6, 7}
#define EXP VARIANT(exp_float)
#define LOG logf
#define SQRT sqrtf
#define NAME(x) VARIANT(x##_float)
#include "cpu_kernel.h"
#undef REAL
#undef LANES
#undef VEC
#undef BITS
#undef COUNTING
#undef EXP
#undef LOG
#undef SQRT
#undef NAME

#define REAL double
#define LANES 4
#define VEC vec_double
#define BITS bits_double
#define COUNTING {0, 1, 2, 3}
#define EXP VARIANT(exp_double)
#define LOG log
#define SQRT sqrt
#define NAME(x) VARIANT(x##_double)
#include "cpu_kernel.h"
#undef REAL
#undef LANES
#undef VEC
#undef BITS
#undef COUNTING
#undef EXP
#undef LOG
#undef SQRT
#undef NAME
