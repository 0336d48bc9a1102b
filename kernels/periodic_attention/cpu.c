/* The `cpu` backend of periodic attention: portable C, one thread per target atom.
 *
 * Nothing of the size of the neighbour list is stored but two numbers per head and pair of atoms:
 * radial functions and weights are recomputed, and of the radial functions only the window that
 * reaches a distance. Every output element is summed by one thread in a fixed order, so results do
 * not depend on the number of threads.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define JOIN(x, y) x##y
#define PRAGMA_SIMD_SUM _Pragma("omp simd reduction(+ : sum)")

/* Vectors of 32 bytes: the compiler makes of them whatever the processor has. */
typedef float vec_float __attribute__((vector_size(32)));
typedef int32_t bits_float __attribute__((vector_size(32)));
typedef double vec_double __attribute__((vector_size(32)));
typedef int64_t bits_double __attribute__((vector_size(32)));

/* Neighbours of one atom that share a source and follow each other form a run. */
typedef struct {
    int64_t number;
    int64_t *run_ptr;    /* runs of target i: run_ptr[i] .. run_ptr[i + 1] */
    int64_t *target;     /* atom i of each run */
    int64_t *source_ptr; /* runs of source j: by_source[source_ptr[j] .. source_ptr[j + 1]] */
    int64_t *by_source;
} runs;

static void free_runs(runs *r) {
    free(r->run_ptr);
    free(r->target);
    free(r->source_ptr);
    free(r->by_source);
}

/* Returns 0, or 1 when memory ran out. */
static int make_runs(const int64_t *source, const int64_t *row_ptr, int64_t atoms, runs *r) {
    const size_t word = sizeof(int64_t);
    r->number = 0;
    r->target = r->by_source = NULL;
    r->run_ptr = calloc((size_t)atoms + 1, word);
    r->source_ptr = calloc((size_t)atoms + 1, word);
    if (!r->run_ptr || !r->source_ptr) return 1;
    for (int64_t i = 0; i < atoms; i++) {
        for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; e++)
            if (e == row_ptr[i] || source[e] != source[e - 1]) {
                r->source_ptr[source[e] + 1]++;
                r->number++;
            }
        r->run_ptr[i + 1] = r->number;
    }
    int64_t *next = malloc(word * ((size_t)atoms + 1));
    r->target = malloc(word * ((size_t)r->number + 1));
    r->by_source = malloc(word * ((size_t)r->number + 1));
    if (!next || !r->target || !r->by_source) {
        free(next);
        return 1;
    }
    for (int64_t j = 0; j < atoms; j++) r->source_ptr[j + 1] += r->source_ptr[j];
    memcpy(next, r->source_ptr, word * ((size_t)atoms + 1));
    int64_t run = 0;
    for (int64_t i = 0; i < atoms; i++)
        for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; e++)
            if (e == row_ptr[i] || source[e] != source[e - 1]) {
                r->target[run] = i;
                r->by_source[next[source[e]]++] = run++;
            }
    free(next);
    return 0;
}

/* The code twice: for any processor, and for x86-64 processors with AVX2 and FMA. (Not with
 * target_clones: GCC takes vector types apart for the plain processor before it makes the clones.) */
#define VARIANT(x) JOIN(x, _plain)
#include "cpu_variant.h"
#undef VARIANT

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#pragma GCC push_options
#pragma GCC target("arch=haswell")
#define VARIANT(x) JOIN(x, _avx2)
#include "cpu_variant.h"
#undef VARIANT
#pragma GCC pop_options
#define CALL(f, ...) (HAS_AVX2 ? f##_avx2(__VA_ARGS__) : f##_plain(__VA_ARGS__))
#else
#define CALL(f, ...) f##_plain(__VA_ARGS__)
#endif

/* What cpu.py calls: each returns 0, or 1 when memory ran out. */
EXPORT int forward_float(const void *p, int threads, float *y, float *lse, float *mean) {
    return CALL(periodic_attention_forward_float, p, threads, y, lse, mean);
}

EXPORT int forward_double(const void *p, int threads, double *y, double *lse, double *mean) {
    return CALL(periodic_attention_forward_double, p, threads, y, lse, mean);
}

EXPORT int backward_float(const void *p, void *g, int threads) {
    return CALL(periodic_attention_backward_float, p, g, threads);
}

EXPORT int backward_double(const void *p, void *g, int threads) {
    return CALL(periodic_attention_backward_double, p, g, threads);
}
