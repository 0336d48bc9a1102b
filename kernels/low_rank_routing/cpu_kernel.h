/* One precision of the low-rank routing kernel, for one kind of processor.
 *
 * REAL, INTEGER (as many bits), WIDE (a vector of WIDTH numbers), EXP2 (of a WIDE), LOG2, MOST (the
 * largest finite number), EPSILON and NAME(x) are set by ../cpu_common/variant.h. Formulas and names
 * follow README.md.
 *
 * The unit of work is one head of one chunk of tokens. It is done tile by tile: some tokens are
 * copied into vectors (lanes are tokens), and cpu_tile.h does the arithmetic. What a chunk adds to a
 * sum over the tokens of a mesh is kept apart, and the chunks' parts are added in their order.
 */

#define WIDTH ((int64_t)(sizeof(WIDE) / sizeof(REAL)))
#define LATENTS (WIDE_BYTES / 32) /* whose sums stand in registers together; AVX-512 has 32 of them */
#define LOG_2E ((REAL)1.44269504088896340736)
#define LN_2 ((REAL)0.69314718055994530942)

typedef INTEGER NAME(integers) __attribute__((vector_size(WIDE_BYTES)));
typedef INTEGER NAME(places) __attribute__((vector_size(4 * sizeof(REAL))));
typedef REAL NAME(four)
    __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* What one thread works with: the latents of one head, as numbers; a tile and sums, as vectors.
 * Heads are padded with zeros to `dim` numbers. */
typedef struct {
    int64_t dim, vectors;                                       /* of a tile, at most */
    REAL *q, *decode_q, *z, *grad_z, *lse_encode, *delta_encode; /* [M, dim], [M]; decode_q or NULL */
    WIDE *k, *v, *y, *grad_y;                                   /* [vectors, dim] */
    WIDE *start, *lse, *delta;                                  /* [vectors] */
    WIDE *score;                                                /* [max(M, LATENTS vectors)] */
    WIDE *grad, *other_grad;                                    /* [vectors, M] */
    WIDE *largest, *total, *sum, *other_sum;                    /* [M], [M], [M, dim], [M, dim] */
} NAME(room);

static ALWAYS_INLINE WIDE NAME(larger)(WIDE a, WIDE b) {
    const NAME(integers) more = b > a;
    return (WIDE)((more & (NAME(integers))b) | (~more & (NAME(integers))a));
}

/* log2(x) of normal x, NaN of NaN: a guess y from the bits of x, wrong by less than 0.09, and twice
 * log2(x / 2^y) by its series. */
static ALWAYS_INLINE WIDE NAME(log2)(WIDE x) {
    const NAME(integers) above_one = (NAME(integers))x - (NAME(integers))((WIDE){0} + 1);
    WIDE y = __builtin_convertvector(above_one, WIDE) * EPSILON;
    for (int step = 0; step < 2; step++) {
        const WIDE t = x * EXP2(-y), u = (t - 1) / (t + 1), square = u * u;
        y += 2 * LOG_2E * u * (1 + square * ((REAL)(1 / 3.0) + square * (REAL)(1 / 5.0)));
    }
    return y;
}

/* 4 rows of 4 numbers, to columns */
static ALWAYS_INLINE void NAME(transpose)(const REAL *from, int64_t stride, REAL *to,
                                          int64_t to_stride) {
    typedef NAME(four) four;
    const four a = *(const four *)from, b = *(const four *)(from + stride);
    const four c = *(const four *)(from + 2 * stride), d = *(const four *)(from + 3 * stride);
    const four ac = SHUFFLE(a, c, 0, 4, 1, 5), bd = SHUFFLE(b, d, 0, 4, 1, 5);
    const four ac2 = SHUFFLE(a, c, 2, 6, 3, 7), bd2 = SHUFFLE(b, d, 2, 6, 3, 7);
    *(four *)to = SHUFFLE(ac, bd, 0, 4, 1, 5);
    *(four *)(to + to_stride) = SHUFFLE(ac, bd, 2, 6, 3, 7);
    *(four *)(to + 2 * to_stride) = SHUFFLE(ac2, bd2, 0, 4, 1, 5);
    *(four *)(to + 3 * to_stride) = SHUFFLE(ac2, bd2, 2, 6, 3, 7);
}

/* The sums over the lanes of `count` vectors, a multiple of 4; the first `kept` of them times `factor`. */
static ALWAYS_INLINE void NAME(add_lanes)(const WIDE *from, int64_t count, int64_t kept, REAL factor,
                                          REAL *to) {
    typedef NAME(four) four;
    for (int64_t d = 0; d < count; d += 4) {
        REAL columns[16];
        for (int64_t e = 0; e < 4; e++) {
            const four *part = (const four *)(from + d + e);
            four sum = part[0];
            for (int64_t l = 1; l < WIDTH / 4; l++) sum += part[l];
            *(four *)(columns + 4 * e) = sum;
        }
        NAME(transpose)(columns, 4, columns, 4);
        const four *column = (const four *)columns;
        const four sum = factor * (column[0] + column[1] + (column[2] + column[3]));
        for (int64_t e = 0; e < 4 && d + e < kept; e++) to[d + e] = sum[e];
    }
}

/* `count` tokens of one head, as vectors; the last one is filled up with zeros. */
static void NAME(load)(tokens from, int64_t begin, int64_t count, int64_t head, int64_t dim,
                       int64_t padded, WIDE *to) {
    const REAL *rows = (const REAL *)from.data + begin * from.token + head * from.head;
    int64_t n = 0;
    if (count % WIDTH || dim < padded)
        memset(to, 0, sizeof(WIDE) * padded * ((count + WIDTH - 1) / WIDTH));
    if (dim == padded)
        for (; n + 3 < count; n += 4) {
            for (int64_t ahead = n + 32; ahead < n + 36; ahead++) /* by hand: rows are far apart */
                __builtin_prefetch(rows + ahead * from.token);
            for (int64_t d = 0; d < dim; d += 4)
                NAME(transpose)(rows + n * from.token + d, from.token,
                                (REAL *)(to + n / WIDTH * dim + d) + n % WIDTH, WIDTH);
        }
    for (; n < count; n++)
        for (int64_t d = 0; d < dim; d++)
            ((REAL *)(to + n / WIDTH * padded + d))[n % WIDTH] = rows[n * from.token + d];
}

static void NAME(store)(const WIDE *from, int64_t begin, int64_t count, int64_t head, int64_t dim,
                        int64_t padded, tokens to) {
    REAL *rows = (REAL *)to.data + begin * to.token + head * to.head;
    int64_t n = 0;
    if (dim == padded)
        for (; n + 3 < count; n += 4)
            for (int64_t d = 0; d < dim; d += 4)
                NAME(transpose)((const REAL *)(from + n / WIDTH * dim + d) + n % WIDTH, WIDTH,
                                rows + n * to.token + d, to.token);
    for (; n < count; n++)
        for (int64_t d = 0; d < dim; d++)
            rows[n * to.token + d] = ((const REAL *)(from + n / WIDTH * padded + d))[n % WIDTH];
}

/* One number per token and head, [T, H], times a factor; `rest` in lanes without a token. */
static void NAME(load_numbers)(const REAL *from, int64_t heads, int64_t begin, int64_t count,
                               int64_t head, REAL factor, REAL rest, WIDE *to) {
    const int64_t all = (count + WIDTH - 1) / WIDTH * WIDTH;
    for (int64_t n = 0; n < all; n++)
        ((REAL *)to)[n] = n < count ? from[(begin + n) * heads + head] * factor : rest;
}

/* 0, and minus infinity in lanes without a token: where their logits start */
static void NAME(load_start)(int64_t count, WIDE *to) {
    const int64_t all = (count + WIDTH - 1) / WIDTH * WIDTH;
    for (int64_t n = 0; n < all; n++) ((REAL *)to)[n] = n < count ? 0 : -(REAL)INFINITY;
}

/* Rows [M, dim] of one head of [B, H, M, dim], times a factor. */
static void NAME(load_latents)(const call *c, const REAL *from, int64_t mesh, int64_t head,
                               REAL factor, int64_t padded, REAL *to) {
    from += (mesh * c->heads + head) * c->latents * c->dim;
    for (int64_t m = 0; m < c->latents; m++)
        for (int64_t d = 0; d < padded; d++)
            to[m * padded + d] = d < c->dim ? from[m * c->dim + d] * factor : 0;
}

static void NAME(load_queries)(const call *c, const chunk *part, int64_t head, const REAL *from,
                               int64_t padded, REAL *to) {
    const int64_t mesh = c->queries == 1 ? 0 : part->mesh;
    NAME(load_latents)(c, from, mesh, head, (REAL)c->scale * LOG_2E, padded, to);
}

#define TILE(x) NAME(x##_4)
#define DIM 4
#define BLOCK 4
#include "cpu_tile.h"
#undef TILE
#undef DIM
#undef BLOCK
#define TILE(x) NAME(x##_8)
#define DIM 8
#define BLOCK 8
#include "cpu_tile.h"
#undef TILE
#undef DIM
#undef BLOCK
#define TILE(x) NAME(x##_16)
#define DIM 16
#define BLOCK 8
#include "cpu_tile.h"
#undef TILE
#undef DIM
#undef BLOCK
#define TILE(x) NAME(x##_32)
#define DIM 32
#define BLOCK 8
#include "cpu_tile.h"
#undef TILE
#undef DIM
#undef BLOCK
#define TILE(x) NAME(x##_any)
#define DIM r->dim
#define BLOCK 4
#include "cpu_tile.h"
#undef TILE
#undef DIM
#undef BLOCK

#define IN_TILES(f, ...)                                                                           \
    (r->dim == 4 ? NAME(f##_4)(__VA_ARGS__)                                                        \
     : r->dim == 8 ? NAME(f##_8)(__VA_ARGS__)                                                      \
     : r->dim == 16 ? NAME(f##_16)(__VA_ARGS__)                                                    \
     : r->dim == 32 ? NAME(f##_32)(__VA_ARGS__) : NAME(f##_any)(__VA_ARGS__))

/* The part of a chunk: for each latent the largest logit, the sum of exp(logit - largest), and that
 * of exp(logit - largest) v, [M, 2 + dim]. */
static void NAME(encode_chunk)(const call *c, const chunk *part, int64_t head, const NAME(room) *r,
                               REAL *out) {
    NAME(load_queries)(c, part, head, c->q, r->dim, r->q);
    for (int64_t m = 0; m < c->latents; m++) {
        r->largest[m] = (WIDE){0} - MOST; /* not minus infinity: lanes may have no token */
        r->total[m] = (WIDE){0};
    }
    memset(r->sum, 0, sizeof(WIDE) * c->latents * r->dim);
    FOR_TILES(part, r) {
        NAME(load)(c->k, begin, count, head, c->dim, r->dim, r->k);
        NAME(load)(c->v, begin, count, head, c->dim, r->dim, r->v);
        NAME(load_start)(count, r->start);
        IN_TILES(encode, r, vectors, c->latents);
    }
    for (int64_t m = 0; m < c->latents; m++, out += 2 + c->dim) {
        REAL largest = r->largest[m][0];
        for (int64_t l = 1; l < WIDTH; l++)
            largest = r->largest[m][l] > largest ? r->largest[m][l] : largest;
        const WIDE share = EXP2(r->largest[m] - largest), total[4] = {r->total[m] * share};
        for (int64_t d = 0; d < r->dim; d++) r->sum[m * r->dim + d] *= share;
        out[0] = largest;
        NAME(add_lanes)(total, 4, 1, 1, out + 1);
        NAME(add_lanes)(r->sum + m * r->dim, r->dim, c->dim, 1, out + 2);
    }
}

/* z and lse of one head of one mesh, from the parts of its chunks. */
static void NAME(merge_latents)(const call *c, const REAL *parts, int64_t mesh, int64_t head) {
    const int64_t first = c->first_chunk[mesh], end = c->first_chunk[mesh + 1], row = 2 + c->dim;
    for (int64_t m = 0; m < c->latents; m++) {
        const int64_t latent = (mesh * c->heads + head) * c->latents + m;
        REAL *z = (REAL *)c->z + latent * c->dim, largest = -(REAL)INFINITY, total = 0;
        for (int64_t d = 0; d < c->dim; d++) z[d] = 0;
        for (int64_t n = first; n < end; n++) {
            const REAL of_part = parts[((n * c->heads + head) * c->latents + m) * row];
            largest = of_part > largest ? of_part : largest;
        }
        for (int64_t n = first; n < end; n++) {
            const REAL *part = parts + ((n * c->heads + head) * c->latents + m) * row;
            const REAL share = EXP2((WIDE){0} + (part[0] - largest))[0];
            total += share * part[1];
            for (int64_t d = 0; d < c->dim; d++) z[d] += share * part[2 + d];
        }
        if (first < end)
            for (int64_t d = 0; d < c->dim; d++) z[d] /= total;
        ((REAL *)c->lse_encode)[latent] = LN_2 * (largest + LOG2(total));
    }
}

static void NAME(decode_chunk)(const call *c, const chunk *part, int64_t head, const NAME(room) *r,
                               REAL *out) {
    (void)out;
    NAME(load_queries)(c, part, head, c->q, r->dim, r->q);
    NAME(load_latents)(c, c->z, part->mesh, head, 1, r->dim, r->z);
    FOR_TILES(part, r) {
        NAME(load)(c->k, begin, count, head, c->dim, r->dim, r->k);
        IN_TILES(decode, r, vectors, c->latents);
        NAME(store)(r->v, begin, count, head, c->dim, r->dim, c->y);
        for (int64_t n = 0; n < count; n++)
            ((REAL *)c->lse_decode)[(begin + n) * c->heads + head] = LN_2 * ((REAL *)r->start)[n];
    }
}

/* The part of a chunk: P dy, [M, dim]. */
static void NAME(latent_gradient_chunk)(const call *c, const chunk *part, int64_t head,
                                        const NAME(room) *r, REAL *out) {
    NAME(load_queries)(c, part, head, c->q, r->dim, r->q);
    memset(r->sum, 0, sizeof(WIDE) * c->latents * r->dim);
    FOR_TILES(part, r) {
        NAME(load)(c->k, begin, count, head, c->dim, r->dim, r->k);
        NAME(load)(c->grad_y, begin, count, head, c->dim, r->dim, r->grad_y);
        NAME(load_numbers)(c->lse_decode, c->heads, begin, count, head, -LOG_2E, -(REAL)INFINITY,
                           r->start);
        IN_TILES(latent_gradient, r, vectors, c->latents);
    }
    for (int64_t m = 0; m < c->latents; m++)
        NAME(add_lanes)(r->sum + m * r->dim, r->dim, c->dim, 1, out + m * c->dim);
}

/* The part of a chunk: dq, and where decoding has its own queries theirs, [M, dim] each. */
static void NAME(token_gradients_chunk)(const call *c, const chunk *part, int64_t head,
                                        const NAME(room) *r, REAL *out) {
    NAME(load_queries)(c, part, head, c->q, r->dim, r->q);
    if (c->decode_q) NAME(load_queries)(c, part, head, c->decode_q, r->dim, r->decode_q);
    NAME(load_latents)(c, c->z, part->mesh, head, 1, r->dim, r->z);
    NAME(load_latents)(c, c->grad_z, part->mesh, head, 1, r->dim, r->grad_z);
    const REAL *lse = (const REAL *)c->lse_encode + (part->mesh * c->heads + head) * c->latents;
    for (int64_t m = 0; m < c->latents; m++) {
        r->lse_encode[m] = LOG_2E * lse[m];
        r->delta_encode[m] = 0;
        for (int64_t d = 0; d < r->dim; d++)
            r->delta_encode[m] += r->z[m * r->dim + d] * r->grad_z[m * r->dim + d];
    }
    memset(r->sum, 0, sizeof(WIDE) * c->latents * r->dim);
    if (c->decode_q) memset(r->other_sum, 0, sizeof(WIDE) * c->latents * r->dim);
    FOR_TILES(part, r) {
        NAME(load)(c->k, begin, count, head, c->dim, r->dim, r->k);
        NAME(load)(c->v, begin, count, head, c->dim, r->dim, r->v);
        NAME(load)(c->y, begin, count, head, c->dim, r->dim, r->y);
        NAME(load)(c->grad_y, begin, count, head, c->dim, r->dim, r->grad_y);
        NAME(load_start)(count, r->start);
        NAME(load_numbers)(c->lse_decode, c->heads, begin, count, head, LOG_2E, 0, r->lse);
        for (int64_t x = 0; x < vectors; x++) {
            r->delta[x] = (WIDE){0};
            for (int64_t d = 0; d < r->dim; d++)
                r->delta[x] += r->y[x * r->dim + d] * r->grad_y[x * r->dim + d];
        }
        IN_TILES(token_gradients, r, vectors, c->latents);
        NAME(store)(r->v, begin, count, head, c->dim, r->dim, c->grad_k);
        NAME(store)(r->grad_y, begin, count, head, c->dim, r->dim, c->grad_v);
    }
    for (int64_t side = 0; side <= (c->decode_q != NULL); side++) {
        const WIDE *sum = side ? r->other_sum : r->sum;
        for (int64_t m = 0; m < c->latents; m++, out += c->dim)
            NAME(add_lanes)(sum + m * r->dim, r->dim, c->dim, (REAL)c->scale, out);
    }
}

/* Adds up the parts first .. end, [H, sides, M dim] each, of one head: to `out` [H, M dim]. */
static void NAME(add_parts)(const call *c, const REAL *parts, int64_t sides, int64_t side,
                            int64_t first, int64_t end, int64_t head, REAL *out) {
    const int64_t size = c->latents * c->dim;
    out += head * size;
    for (int64_t e = 0; e < size; e++) out[e] = 0;
    for (int64_t n = first; n < end; n++) {
        const REAL *part = parts + ((n * c->heads + head) * sides + side) * size;
        for (int64_t e = 0; e < size; e++) out[e] += part[e];
    }
}

static void NAME(merge_latent_gradient)(const call *c, const REAL *parts, int64_t mesh,
                                        int64_t head) {
    NAME(add_parts)(c, parts, 1, 0, c->first_chunk[mesh], c->first_chunk[mesh + 1], head,
                    (REAL *)c->grad_z + mesh * c->heads * c->latents * c->dim);
}

static void NAME(merge_query_gradients)(const call *c, const REAL *parts, int64_t mesh,
                                        int64_t head) {
    const int64_t first = c->first_chunk[mesh], sides = 1 + (c->decode_q != NULL);
    const int64_t end = c->first_chunk[c->queries == 1 ? c->meshes : mesh + 1];
    for (int64_t side = 0; side < sides; side++) {
        REAL *out = side ? c->grad_decode_q : c->grad_q;
        NAME(add_parts)(c, parts, sides, side, first, end, head,
                        out + mesh * c->heads * c->latents * c->dim);
    }
}

static int NAME(make_room)(const call *c, NAME(room) *r, void **memory) {
    enum { TILE_BYTES = 32768, GRAD_BYTES = 524288 }; /* of k and v of a tile; of its E or S */
    const int64_t M = c->latents, D = (c->dim + 3) / 4 * 4, wide = sizeof(WIDE);
    int64_t vectors = TILE_BYTES / (2 * D * wide);
    const int64_t most = GRAD_BYTES / (M * wide);
    vectors = vectors < most ? vectors : most;
    vectors = vectors < 1 ? 1 : vectors;
    const int64_t score = M > LATENTS * vectors ? M : LATENTS * vectors, row = vectors * D;
    WIDE **wides[] = {&r->k, &r->v, &r->y, &r->grad_y, &r->start, &r->lse, &r->delta, &r->score,
                      &r->grad, &r->other_grad, &r->largest, &r->total, &r->sum, &r->other_sum};
    const int64_t sizes[] = {row, row, row, row, vectors, vectors, vectors, score,
                             vectors * M, vectors * M, M, M, M * D, M * D};
    REAL **reals[] = {&r->q, &r->decode_q, &r->z, &r->grad_z, &r->lse_encode, &r->delta_encode};
    const int64_t vectors_of_reals = (M * D + WIDTH - 1) / WIDTH;
    int64_t all = 6 * vectors_of_reals;
    for (int n = 0; n < 14; n++) all += sizes[n];
    WIDE *next = *memory = aligned_alloc(64, 64 * (size_t)(all * wide / 64 + 1));
    if (!next) return NO_MEMORY;
    for (int n = 0; n < 14; next += sizes[n++]) *wides[n] = next;
    for (int n = 0; n < 6; n++, next += vectors_of_reals) *reals[n] = (REAL *)next;
    if (!c->decode_q) r->decode_q = NULL;
    r->dim = D;
    r->vectors = vectors;
    return DONE;
}

typedef void (*NAME(work))(const call *, const chunk *, int64_t, const NAME(room) *, REAL *);
typedef void (*NAME(merge))(const call *, const REAL *, int64_t, int64_t);

/* `work` on every head of every chunk, each with a part of `size` numbers for its sums; then
 * `merge`, if there are any, on every head of `merged` meshes. */
static int NAME(run)(const call *c, int threads, NAME(work) work, int64_t size, NAME(merge) merge,
                     int64_t merged) {
    const int64_t items = c->chunks * c->heads;
    const int64_t grain = c->chunks >= 4 * threads ? c->heads : 1; /* heads share cache lines */
    REAL *parts = malloc(sizeof(REAL) * (size_t)(items * size + 1));
    int state = parts ? DONE : NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        NAME(room) r;
        void *memory = NULL;
        if (NAME(make_room)(c, &r, &memory) != DONE) {
#pragma omp atomic write
            state = NO_MEMORY;
        }
#pragma omp barrier
        if (state == DONE) {
#pragma omp for schedule(dynamic, grain)
            for (int64_t i = 0; i < items; i++)
                work(c, c->list + i / c->heads, i % c->heads, &r, parts + i * size);
            if (merge) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < merged * c->heads; i++)
                    merge(c, parts, i / c->heads, i % c->heads);
            }
        }
        free(memory);
    }
    free(parts);
    return state;
}

static int NAME(low_rank_encode)(const call *c, int threads) {
    return NAME(run)(c, threads, NAME(encode_chunk), c->latents * (2 + c->dim),
                     NAME(merge_latents), c->meshes);
}

static int NAME(low_rank_decode)(const call *c, int threads) {
    return NAME(run)(c, threads, NAME(decode_chunk), 0, NULL, 0);
}

static int NAME(low_rank_latent_gradient)(const call *c, int threads) {
    return NAME(run)(c, threads, NAME(latent_gradient_chunk), c->latents * c->dim,
                     NAME(merge_latent_gradient), c->meshes);
}

static int NAME(low_rank_token_gradients)(const call *c, int threads) {
    const int64_t sides = 1 + (c->decode_q != NULL);
    return NAME(run)(c, threads, NAME(token_gradients_chunk), sides * c->latents * c->dim,
                     NAME(merge_query_gradients), c->queries);
}

#undef WIDTH
#undef LOG_2E
#undef LN_2
#undef IN_TILES
#undef LATENTS
