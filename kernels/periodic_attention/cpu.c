/* The `cpu` backend of periodic attention: portable C, one thread per target atom.
 *
 * Nothing of the size of the neighbour list is stored but two numbers per head and pair of atoms
 * (and one for every channel of the moments):
 * radial functions and weights are recomputed, and of the radial functions only the window that
 * reaches a distance. Every output element is summed by one thread in a fixed order, so results do
 * not depend on the number of threads.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Vectors of 32 bytes: the compiler makes of them whatever the processor has. */
typedef float vec_float __attribute__((vector_size(32)));
typedef int32_t bits_float __attribute__((vector_size(32)));
typedef double vec_double __attribute__((vector_size(32)));
typedef int64_t bits_double __attribute__((vector_size(32)));
static const float counting_float[] __attribute__((aligned(64))) =
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const double counting_double[] __attribute__((aligned(64))) =
    {0, 1, 2, 3, 4, 5, 6, 7};

/* Neighbours of one atom that share a source and follow each other form a run. */
typedef struct {
    int64_t number;
    int64_t *run_ptr;    /* runs of target i: run_ptr[i] .. run_ptr[i + 1] */
    int64_t *begin;      /* neighbours of a run: begin[run] .. begin[run + 1] */
    int64_t *target;     /* atom i of each run */
    int64_t *source_ptr; /* runs of source j: by_source[source_ptr[j] .. source_ptr[j + 1]] */
    int64_t *by_source;
} runs;

static void free_runs(runs *r) {
    free(r->run_ptr);
    free(r->begin);
    free(r->target);
    free(r->source_ptr);
    free(r->by_source);
}

/* What a call returns: 0, or why there is no result. */
enum { DONE, NO_MEMORY, EMPTY_ROW, BAD_SOURCE, BAD_ROW_PTR };

/* Checks the list and cuts it where no neighbour crosses, into parts of PART atoms or a little more
 * (whole crystals): what is copied and left in memory for the backward then stays small, and in the
 * cache. cut[0] .. cut[*parts], which the caller frees. */
enum { PART = 512 };

static int make_parts(const int64_t *source, const int64_t *row_ptr, int64_t atoms,
                      int64_t neighbours, int threads, int64_t **cut, int64_t *parts) {
    if (row_ptr[0] != 0 || row_ptr[atoms] != neighbours) return BAD_ROW_PTR;
    for (int64_t i = 0; i < atoms; i++)
        if (row_ptr[i] >= row_ptr[i + 1]) return EMPTY_ROW;
    const size_t word = sizeof(int64_t);
    int64_t *low = malloc(word * (size_t)(2 * atoms + 1)), *high = low + atoms + 1;
    *cut = malloc(word * (size_t)(atoms / PART + 2));
    if (!low || !*cut) {
        free(low);
        return NO_MEMORY;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < atoms; i++) {
        int64_t least = source[row_ptr[i]], most = least;
        for (int64_t e = row_ptr[i] + 1; e < row_ptr[i + 1]; e++) {
            least = source[e] < least ? source[e] : least;
            most = source[e] > most ? source[e] : most;
        }
        low[i] = least;
        high[i] = most;
    }
    low[atoms] = atoms;
    for (int64_t i = atoms - 1; i >= 0; i--) low[i] = low[i] < low[i + 1] ? low[i] : low[i + 1];
    int64_t most = 0;
    *parts = (*cut)[0] = 0;
    for (int64_t i = 1; i <= atoms; i++) {
        most = high[i - 1] > most ? high[i - 1] : most;
        const int whole = most < i && low[i] >= i; /* no neighbour crosses from either side */
        if (i == atoms || (whole && i - (*cut)[*parts] >= PART)) (*cut)[++*parts] = i;
    }
    const int state = low[0] < 0 || most >= atoms ? BAD_SOURCE : DONE;
    free(low);
    return state;
}

/* The runs of one part; sources are counted from `origin`, its first atom. */
static int make_runs(const int64_t *source, const int64_t *row_ptr, int64_t atoms, int64_t origin,
                     int threads, runs *r) {
    const size_t word = sizeof(int64_t);
    memset(r, 0, sizeof(runs));
    r->run_ptr = calloc((size_t)atoms + 1, word);
    r->source_ptr = calloc((size_t)atoms + 2, word);
    if (!r->run_ptr || !r->source_ptr) return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < atoms; i++) {
        int64_t changes = 0;
        for (int64_t e = row_ptr[i] + 1; e < row_ptr[i + 1]; e++)
            changes += source[e] != source[e - 1];
        r->run_ptr[i + 1] = 1 + changes;
    }
    for (int64_t i = 0; i < atoms; i++) r->run_ptr[i + 1] += r->run_ptr[i];
    r->number = r->run_ptr[atoms];
    r->begin = malloc(word * ((size_t)r->number + 1));
    r->target = malloc(word * ((size_t)r->number + 1));
    r->by_source = malloc(word * ((size_t)r->number + 1));
    if (!r->begin || !r->target || !r->by_source) return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < atoms; i++) {
        int64_t run = r->run_ptr[i];
        r->begin[run++] = row_ptr[i];
        for (int64_t e = row_ptr[i] + 1; e < row_ptr[i + 1]; e++)
            if (source[e] != source[e - 1]) r->begin[run++] = e;
        for (run = r->run_ptr[i]; run < r->run_ptr[i + 1]; run++) r->target[run] = i;
    }
    r->begin[r->number] = row_ptr[atoms];
    int64_t *next = r->source_ptr + 1; /* counts, then ends, of source j - 1 at next[j] */
    for (int64_t run = 0; run < r->number; run++) next[source[r->begin[run]] - origin + 1]++;
    for (int64_t j = 0; j < atoms; j++) next[j + 1] += next[j];
    for (int64_t run = 0; run < r->number; run++)
        r->by_source[next[source[r->begin[run]] - origin]++] = run;
    return DONE;
}

#define KERNEL "../periodic_attention/cpu_kernel.h"
#include "../cpu_common/variants.h"

EXPORT int abi = 3; /* counts changes of `problem`, `gradients` and results; cpu.py has the same */

/* What cpu.py calls. */
EXPORT int forward_float(const void *p, int threads, float *y, float *lse, float *mean,
                         float *moments) {
    return CALL(periodic_attention_forward_float, p, threads, y, lse, mean, moments);
}

EXPORT int forward_double(const void *p, int threads, double *y, double *lse, double *mean,
                         double *moments) {
    return CALL(periodic_attention_forward_double, p, threads, y, lse, mean, moments);
}

EXPORT int backward_float(const void *p, void *g, int threads) {
    return CALL(periodic_attention_backward_float, p, g, threads);
}

EXPORT int backward_double(const void *p, void *g, int threads) {
    return CALL(periodic_attention_backward_double, p, g, threads);
}
