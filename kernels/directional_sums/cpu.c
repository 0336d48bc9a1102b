/* The `cpu` backend of directional sums: portable C, one thread per target atom, then one per source.
 *
 * Every output element is summed by one thread in a fixed order, so results do not depend on the
 * number of threads.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Vectors of 32 bytes: the compiler makes of them whatever the processor has. */
typedef float vec_float __attribute__((vector_size(32)));
typedef double vec_double __attribute__((vector_size(32)));

/* What a call returns: 0, or why there is no result. */
enum { DONE, NO_MEMORY, BAD_SOURCE, BAD_ROW_PTR };

/* Checks the list; returns the largest number of neighbours of an atom. */
static int check(const int64_t *source, const int64_t *row_ptr, int64_t targets, int64_t atoms,
                 int64_t edges, int64_t *most) {
    *most = 0;
    if (row_ptr[0] != 0 || row_ptr[targets] != edges) return BAD_ROW_PTR;
    for (int64_t i = 0; i < targets; i++) {
        const int64_t size = row_ptr[i + 1] - row_ptr[i];
        if (size < 0) return BAD_ROW_PTR;
        *most = size > *most ? size : *most;
    }
    for (int64_t e = 0; e < edges; e++)
        if (source[e] < 0 || source[e] >= atoms) return BAD_SOURCE;
    return DONE;
}

/* The neighbours that each source is: by_source[ptr[j] .. ptr[j + 1]]; the caller frees both. */
static int sort_by_source(const int64_t *source, int64_t edges, int64_t atoms, int64_t **ptr,
                          int64_t **by_source) {
    *ptr = calloc((size_t)atoms + 2, sizeof(int64_t));
    *by_source = malloc(((size_t)edges + 1) * sizeof(int64_t));
    if (!*ptr || !*by_source) return NO_MEMORY;
    int64_t *next = *ptr + 1; /* counts, then ends, of source j - 1 at next[j] */
    for (int64_t e = 0; e < edges; e++) next[source[e] + 1]++;
    for (int64_t j = 0; j < atoms; j++) next[j + 1] += next[j];
    for (int64_t e = 0; e < edges; e++) (*by_source)[next[source[e]]++] = e;
    return DONE;
}

#define KERNEL "../directional_sums/cpu_kernel.h"
#include "../cpu_common/variants.h"

EXPORT int abi = 1; /* counts changes of `problem` and of the functions; cpu.py has the same */

/* What cpu.py calls. */
EXPORT int forward_float(const void *p, int threads, float *sums) {
    return CALL(directional_sums_forward_float, p, threads, sums);
}

EXPORT int forward_double(const void *p, int threads, double *sums) {
    return CALL(directional_sums_forward_double, p, threads, sums);
}

EXPORT int backward_float(const void *p, int threads, const float *grad, float *by_radial,
                          float *by_value, float *by_table) {
    return CALL(directional_sums_backward_float, p, threads, grad, by_radial, by_value, by_table);
}

EXPORT int backward_double(const void *p, int threads, const double *grad, double *by_radial,
                           double *by_value, double *by_table) {
    return CALL(directional_sums_backward_double, p, threads, grad, by_radial, by_value, by_table);
}
