/* The `cpu` backend of low-rank routing: portable C, one thread per head and chunk of tokens.
 *
 * Nothing of the size of the scores [M, N] is stored: every pass computes them again. A sum over
 * tokens is one of chunks, whose ends depend on the meshes only, so results do not depend on the
 * number of threads.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What a call returns: 0, or why there is no result. */
enum { DONE, NO_MEMORY };

/* A view of numbers [T, H, D], the last dimension contiguous. */
typedef struct {
    void *data;
    int64_t token, head; /* strides */
} tokens;

/* Tokens begin .. end of a mesh */
typedef struct {
    int64_t mesh, begin, end;
} chunk;

/* What cpu.py fills in, and below the line what this file adds. Inputs and outputs are those of
 * reference.py: contiguous where they are no `tokens`; NULL where a call does not have them. */
typedef struct {
    const int64_t *ptr;
    int64_t meshes, heads, latents, dim, queries; /* queries: of 1 or of all meshes */
    double scale;
    tokens k, v, y, grad_y, grad_k, grad_v;
    const void *q, *decode_q;
    void *z, *grad_z, *lse_encode, *lse_decode, *grad_q, *grad_decode_q;
    /* ---- */
    chunk *list;
    int64_t chunks, *first_chunk; /* of mesh b: first_chunk[b] .. first_chunk[b + 1] */
} call;

enum { CHUNK = 2048 };

static int make_chunks(call *c) {
    c->chunks = 0;
    for (int64_t b = 0; b < c->meshes; b++)
        c->chunks += (c->ptr[b + 1] - c->ptr[b] + CHUNK - 1) / CHUNK;
    c->list = malloc(sizeof(chunk) * (size_t)(c->chunks + 1));
    c->first_chunk = malloc(sizeof(int64_t) * (size_t)(c->meshes + 1));
    if (!c->list || !c->first_chunk) return NO_MEMORY;
    int64_t n = 0;
    for (int64_t b = 0; b < c->meshes; b++) {
        c->first_chunk[b] = n;
        for (int64_t begin = c->ptr[b]; begin < c->ptr[b + 1]; begin += CHUNK) {
            const int64_t end = begin + CHUNK < c->ptr[b + 1] ? begin + CHUNK : c->ptr[b + 1];
            c->list[n++] = (chunk){b, begin, end};
        }
    }
    c->first_chunk[c->meshes] = n;
    return DONE;
}

/* For each tile of a chunk: its first token, and how many tokens and vectors it has. */
#define FOR_TILES(part, r)                                                                         \
    for (int64_t begin = (part)->begin, count, vectors;                                            \
         count = (part)->end - begin,                                                              \
         count = count < (r)->vectors * WIDTH ? count : (r)->vectors * WIDTH,                      \
         vectors = (count + WIDTH - 1) / WIDTH, count > 0;                                         \
         begin += count)

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (NAME(places)){__VA_ARGS__})
#endif

#define KERNEL "../low_rank_routing/cpu_kernel.h"
#include "../cpu_common/variants.h"

EXPORT int abi = 1; /* counts changes of `call`; cpu.py has the same */

/* What cpu.py calls. */
#define EXPORTED(name)                                                                             \
    EXPORT int name##_float(call *c, int threads) {                                                \
        const int state = make_chunks(c);                                                          \
        return done(c, state == DONE ? CALL(low_rank_##name##_float, c, threads) : state);         \
    }                                                                                              \
    EXPORT int name##_double(call *c, int threads) {                                               \
        const int state = make_chunks(c);                                                          \
        return done(c, state == DONE ? CALL(low_rank_##name##_double, c, threads) : state);        \
    }

static int done(call *c, int state) {
    free(c->list);
    free(c->first_chunk);
    return state;
}

EXPORTED(encode)
EXPORTED(decode)
EXPORTED(latent_gradient)
EXPORTED(token_gradients)
