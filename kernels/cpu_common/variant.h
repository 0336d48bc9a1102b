/* KERNEL in both precisions for one kind of processor; VARIANT(x) and WIDE_BYTES (of its longest
 * vectors) are set by variants.h. What a kernel finds: REAL, INTEGER (as many bits), WIDE (a vector of
 * WIDE_BYTES), EXP2 (of a WIDE), LOG2, SQRT, MOST (the largest finite number), EPSILON,
 * PRECISION(x) (names that all processors share) and NAME(x) (names of this variant). */

typedef float VARIANT(wide_float) __attribute__((vector_size(WIDE_BYTES)));
typedef uint32_t VARIANT(bits_wide_float) __attribute__((vector_size(WIDE_BYTES)));
typedef double VARIANT(wide_double) __attribute__((vector_size(WIDE_BYTES)));
typedef uint64_t VARIANT(bits_wide_double) __attribute__((vector_size(WIDE_BYTES)));

/* 2^x, zero below the smallest normal number (also for -inf), NaN of NaN: 2^n times a polynomial.
 * Adding 1.5 * 2^23 (2^52) rounds to an integer and leaves it in the low bits. */
static ALWAYS_INLINE VARIANT(wide_float) VARIANT(exp2_float)(VARIANT(wide_float) x) {
    const VARIANT(wide_float) shifted = x + 12582912.0f;
    const VARIANT(wide_float) r = x - (shifted - 12582912.0f);
    VARIANT(wide_float) e = r * 1.5453162945e-4f + 1.3390863365e-3f; /* relative error 1e-7 */
    e = e * r + 9.6180825573e-3f;
    e = e * r + 5.5503571142e-2f;
    e = e * r + 2.4022650761e-1f;
    e = e * r + 6.9314718803e-1f;
    e = e * r + 1.0f;
    const VARIANT(bits_wide_float) power = ((VARIANT(bits_wide_float))shifted << 23) + 0x3f800000u;
    return (VARIANT(wide_float))((VARIANT(bits_wide_float))(e * (VARIANT(wide_float))power) & ~(VARIANT(bits_wide_float))(x <= -126.0f));
}

static ALWAYS_INLINE VARIANT(wide_double) VARIANT(exp2_double)(VARIANT(wide_double) x) {
    const VARIANT(wide_double) shifted = x + 6755399441055744.0;
    const VARIANT(wide_double) r = x - (shifted - 6755399441055744.0);
    VARIANT(wide_double) e = r * 1.3691488853904128881e-12 + 2.5678435993488205142e-11; /* Taylor to r^13 */
    e = e * r + 4.4455382718708114976e-10;
    e = e * r + 7.0549116208011233299e-9;
    e = e * r + 1.0178086009239699727e-7;
    e = e * r + 1.3215486790144309488e-6;
    e = e * r + 1.5252733804059840280e-5;
    e = e * r + 1.5403530393381609954e-4;
    e = e * r + 1.3333558146428443423e-3;
    e = e * r + 9.6181291076284771620e-3;
    e = e * r + 5.5504108664821579953e-2;
    e = e * r + 2.4022650695910071233e-1;
    e = e * r + 6.9314718055994530942e-1;
    e = e * r + 1.0;
    const VARIANT(bits_wide_double) power = ((VARIANT(bits_wide_double))shifted << 52) + 0x3ff0000000000000u;
    return (VARIANT(wide_double))((VARIANT(bits_wide_double))(e * (VARIANT(wide_double))power) & ~(VARIANT(bits_wide_double))(x <= -1022.0));
}

#define REAL float
#define INTEGER int32_t
#define WIDE VARIANT(wide_float)
#define EXP2 VARIANT(exp2_float)
#define LOG2 log2f
#define SQRT sqrtf
#define MOST FLT_MAX
#define EPSILON FLT_EPSILON
#define PRECISION(x) JOIN(x, _float)
#define NAME(x) VARIANT(x##_float)
#include KERNEL
#undef REAL
#undef INTEGER
#undef WIDE
#undef EXP2
#undef LOG2
#undef SQRT
#undef MOST
#undef EPSILON
#undef PRECISION
#undef NAME

#define REAL double
#define INTEGER int64_t
#define WIDE VARIANT(wide_double)
#define EXP2 VARIANT(exp2_double)
#define LOG2 log2
#define SQRT sqrt
#define MOST DBL_MAX
#define EPSILON DBL_EPSILON
#define PRECISION(x) JOIN(x, _double)
#define NAME(x) VARIANT(x##_double)
#include KERNEL
#undef REAL
#undef INTEGER
#undef WIDE
#undef EXP2
#undef LOG2
#undef SQRT
#undef MOST
#undef EPSILON
#undef PRECISION
#undef NAME
