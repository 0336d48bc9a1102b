/* The code of KERNEL, a header, once for any processor, and on x86-64 again for those with AVX2 and
 * FMA and for those with AVX-512 (for its 32 registers and its broadcasts). Not with target_clones:
 * GCC takes vector types apart for the plain processor before it makes the clones. */

#include <float.h>
#include <math.h>
#include <stdint.h>

/* The names that every glibc has, so that a wheel also runs on older systems than it was built on. */
#if defined(__x86_64__) && defined(__GLIBC__)
__asm__(".symver log2,log2@GLIBC_2.2.5");
__asm__(".symver log2f,log2f@GLIBC_2.2.5");
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define JOIN(x, y) x##y

#define VARIANT(x) JOIN(x, _plain)
#define WIDE_BYTES 32
#include "variant.h"
#undef VARIANT

#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=haswell")
#endif
#define VARIANT(x) JOIN(x, _avx2)
#include "variant.h"
#undef VARIANT
#undef WIDE_BYTES
#define WIDE_BYTES 64
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=skylake-avx512,prefer-vector-width=256")
#endif
#define VARIANT(x) JOIN(x, _avx512)
#include "variant.h"
#undef VARIANT
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

/* 0: any processor, 1: AVX2, 2: AVX-512. */
static int processor(void) {
#define HAS(feature) __builtin_cpu_supports(feature)
    if (!HAS("avx2") || !HAS("fma") || !HAS("bmi2")) return 0;
    return 1 + (HAS("avx512f") && HAS("avx512vl") && HAS("avx512dq") && HAS("avx512bw")
                && HAS("avx512cd"));
}
#define CALL(f, ...)                                                                               \
    (variant() == 2 ? f##_avx512(__VA_ARGS__)                                                      \
     : variant() == 1 ? f##_avx2(__VA_ARGS__) : f##_plain(__VA_ARGS__))
#else
static int processor(void) { return 0; }
#define CALL(f, ...) f##_plain(__VA_ARGS__)
#endif

EXPORT int most_variant = 2; /* tests lower it, to run what other processors would */

EXPORT int variant(void) {
    const int best = processor();
    return best < most_variant ? best : most_variant;
}
