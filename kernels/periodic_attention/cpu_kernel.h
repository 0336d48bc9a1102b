/* One precision of the periodic attention kernel; cpu.c includes it for float and for double.
 *
 * REAL, LANES, VEC (a vector of LANES numbers), BITS (a vector of as many integers), EXP, LOG, SQRT
 * and NAME(x) are set by cpu.c. Formulas and names follow README.md. Arrays are contiguous: q, k, v,
 * y, ... [N, H, D]; a, lse [N, H]; weight [H, D, K]; mean (c) [N, H, K]; distance [E]; bias NULL, [E]
 * or [E, H]. The neighbours of atom i are row_ptr[i] .. row_ptr[i + 1]; neighbours with one source
 * that follow each other form a run, and all that involves q, k and v happens once per run.
 *
 * Heads are the innermost index of all scratch arrays, padded to `vectors` vectors.
 */

typedef struct {
    const REAL *q, *k, *v, *a, *weight, *distance, *bias;
    const int64_t *source, *row_ptr;
    int64_t atoms, heads, dim, count, bias_heads;
    REAL spacing, width, reach; /* reach: a radial function is negligible this far from its centre */
} NAME(problem);

typedef struct {
    const REAL *grad_y, *grad_lse, *y, *lse;
    REAL *grad_q, *grad_k, *grad_v, *grad_a, *grad_distance; /* grad_distance may be NULL */
    REAL *run_weight, *run_score; /* A_ij and the gradient of q.k of every run, [runs, H] */
    const int64_t *run_ptr;       /* as in runs */
} NAME(gradients);

/* Radial functions that are computed at a time: those that can reach one distance, in vectors. */
static ALWAYS_INLINE int64_t NAME(window)(const NAME(problem) *p) {
    const int64_t needed = (int64_t)(2 * p->reach / p->spacing) + 2;
    const int64_t most = needed < p->count ? needed : p->count;
    return (most + LANES - 1) / LANES * LANES;
}

/* The table of radial functions has at least a window of rows. */
static ALWAYS_INLINE int64_t NAME(rows)(const NAME(problem) *p) {
    const int64_t window = NAME(window)(p);
    return p->count > window ? p->count : window;
}

/* b_k(d) of the window of functions that begins at the returned (0-based) one. */
static ALWAYS_INLINE int64_t NAME(basis)(const NAME(problem) *p, REAL d, int64_t window, REAL *b) {
    int64_t first = (int64_t)((d - p->reach) / p->spacing);
    const int64_t last = NAME(rows)(p) - window;
    first = first > 0 ? first : 0;
    first = first < last ? first : last;
    const REAL scale = (REAL)0.70710678118654752440 / p->width;
    const REAL start = (d - (REAL)(first + 1) * p->spacing) * scale, step = p->spacing * scale;
    VEC number = COUNTING;
    for (int64_t n = 0; n < window; n += LANES) {
        const VEC x = start - number * step;
        *(VEC *)(b + n) = EXP(-x * x);
        number += LANES;
    }
    return first;
}

/* scores[h] = factor sum_d x[h, d] y[h, d] */
static ALWAYS_INLINE void NAME(dots)(const REAL *restrict x, const REAL *restrict y, int64_t heads,
                                     int64_t dim, REAL factor, REAL *restrict scores) {
    for (int64_t h = 0; h < heads; h++) {
        REAL sum = 0;
        PRAGMA_SIMD_SUM
        for (int64_t d = 0; d < dim; d++) sum += x[h * dim + d] * y[h * dim + d];
        scores[h] = factor * sum;
    }
}

/* out[h, d] += factor scores[h] x[h, d] */
static ALWAYS_INLINE void NAME(add_scaled)(const REAL *restrict scores, const REAL *restrict x,
                                           int64_t heads, int64_t dim, REAL factor,
                                           REAL *restrict out) {
    for (int64_t h = 0; h < heads; h++) {
        const REAL s = factor * scores[h];
        for (int64_t d = 0; d < dim; d++) out[h * dim + d] += s * x[h * dim + d];
    }
}

static ALWAYS_INLINE int NAME(starts_run)(const NAME(problem) *p, int64_t e, int64_t begin) {
    return e == begin || p->source[e] != p->source[e - 1];
}

static ALWAYS_INLINE int NAME(ends_run)(const NAME(problem) *p, int64_t e, int64_t end) {
    return e + 1 == end || p->source[e + 1] != p->source[e];
}

/* logits [M, vectors] of atom i; the padding lanes hold zeros. */
static ALWAYS_INLINE void NAME(logits)(const NAME(problem) *p, int64_t i, int64_t vectors,
                                       VEC *restrict scores, VEC *restrict decay,
                                       VEC *restrict logit) {
    const int64_t begin = p->row_ptr[i], end = p->row_ptr[i + 1], heads = p->heads, dim = p->dim;
    const REAL factor = (REAL)1 / SQRT((REAL)dim);
    for (int64_t n = 0; n < vectors; n++) scores[n] = decay[n] = (VEC){0};
    for (int64_t h = 0; h < heads; h++) ((REAL *)decay)[h] = p->a[i * heads + h];
    for (int64_t e = begin; e < end; e++) {
        if (NAME(starts_run)(p, e, begin))
            NAME(dots)(p->q + i * heads * dim, p->k + p->source[e] * heads * dim, heads, dim,
                       factor, (REAL *)scores);
        const REAL d2 = p->distance[e] * p->distance[e];
        VEC *row = logit + (e - begin) * vectors;
        for (int64_t n = 0; n < vectors; n++) row[n] = scores[n] + decay[n] * d2;
        if (p->bias_heads == 1)
            for (int64_t n = 0; n < vectors; n++) row[n] += p->bias[e];
        else if (p->bias_heads)
            for (int64_t h = 0; h < heads; h++) ((REAL *)row)[h] += p->bias[e * heads + h];
    }
}

/* Sums over neighbours go through partial sums of BLOCK terms, for accuracy in single precision. */
enum { NAME(BLOCK) = 64 };

static ALWAYS_INLINE void NAME(forward_atom)(const NAME(problem) *p, int64_t i, int64_t vectors,
                                             VEC *restrict room, REAL *restrict y,
                                             REAL *restrict lse, REAL *restrict mean) {
    const int64_t begin = p->row_ptr[i], end = p->row_ptr[i + 1];
    const int64_t heads = p->heads, dim = p->dim, count = p->count;
    const int64_t window = NAME(window)(p), rows = NAME(rows)(p);
    VEC *scores = room, *largest = scores + vectors, *total = largest + vectors;
    VEC *part = total + vectors, *basis = part + vectors, *table = basis + window / LANES;
    VEC *block = table + rows * vectors, *weight = block + rows * vectors;
    REAL *out = y + i * heads * dim, *b = (REAL *)basis;
    NAME(logits)(p, i, vectors, scores, largest, weight);
    for (int64_t n = 0; n < vectors; n++) largest[n] = weight[n], total[n] = part[n] = (VEC){0};
    for (int64_t m = 1; m < end - begin; m++)
        for (int64_t n = 0; n < vectors; n++) {
            const VEC x = weight[m * vectors + n];
            const BITS more = x > largest[n];
            largest[n] = (VEC)((more & (BITS)x) | (~more & (BITS)largest[n]));
        }
    for (int64_t m = 0; m < end - begin; m++)
        for (int64_t n = 0; n < vectors; n++) {
            const VEC x = EXP(weight[m * vectors + n] - largest[n]);
            weight[m * vectors + n] = x;
            part[n] += x;
            if (m % NAME(BLOCK) == NAME(BLOCK) - 1) total[n] += part[n], part[n] = (VEC){0};
        }
    for (int64_t n = 0; n < vectors; n++) total[n] += part[n];
    for (int64_t h = 0; h < heads; h++)
        lse[i * heads + h] = ((REAL *)largest)[h] + LOG(((REAL *)total)[h]);
    for (int64_t n = 0; n < vectors; n++) total[n] = 1 / total[n], scores[n] = (VEC){0};
    memset(table, 0, sizeof(VEC) * 2 * rows * vectors); /* and block: c transposed, [K, H] */
    memset(out, 0, sizeof(REAL) * heads * dim);
    for (int64_t e = begin; e < end; e++) { /* scores is now A_ij of the run */
        VEC *row = weight + (e - begin) * vectors;
        for (int64_t n = 0; n < vectors; n++) row[n] *= total[n], scores[n] += row[n];
        VEC *c = block + NAME(basis)(p, p->distance[e], window, b) * vectors;
        for (int64_t m = 0; m < window; m++)
            for (int64_t n = 0; n < vectors; n++) c[m * vectors + n] += b[m] * row[n];
        if ((e - begin) % NAME(BLOCK) == NAME(BLOCK) - 1 || e + 1 == end)
            for (int64_t m = 0; m < rows * vectors; m++)
                table[m] += block[m], block[m] = (VEC){0};
        if (NAME(ends_run)(p, e, end)) {
            NAME(add_scaled)((REAL *)scores, p->v + p->source[e] * heads * dim, heads, dim, 1, out);
            for (int64_t n = 0; n < vectors; n++) scores[n] = (VEC){0};
        }
    }
    for (int64_t h = 0; h < heads; h++) {
        REAL *c = mean + (i * heads + h) * count;
        for (int64_t m = 0; m < count; m++) c[m] = ((REAL *)table)[m * vectors * LANES + h];
        for (int64_t d = 0; d < dim; d++) {
            const REAL *w = p->weight + (h * dim + d) * count;
            REAL sum = 0;
            PRAGMA_SIMD_SUM
            for (int64_t m = 0; m < count; m++) sum += w[m] * c[m];
            out[h * dim + d] += sum;
        }
    }
}

static ALWAYS_INLINE void NAME(backward_atom)(const NAME(problem) *p, const NAME(gradients) *g,
                                              int64_t i, int64_t vectors, VEC *restrict room) {
    const int64_t begin = p->row_ptr[i], end = p->row_ptr[i + 1];
    const int64_t heads = p->heads, dim = p->dim, count = p->count;
    const int64_t window = NAME(window)(p), rows = NAME(rows)(p);
    const REAL factor = (REAL)1 / SQRT((REAL)dim), narrow = 1 / (p->width * p->width);
    VEC *scores = room, *values = scores + vectors, *offset = values + vectors;
    VEC *decay = offset + vectors, *lse = decay + vectors, *grad_a = lse + vectors;
    VEC *run_weight = grad_a + vectors, *run_score = run_weight + vectors;
    VEC *basis = run_score + vectors, *table = basis + window / LANES;
    VEC *line = table + rows * vectors, *weight = line + (count + LANES - 1) / LANES;
    const REAL *go = g->grad_y + i * heads * dim;
    REAL *grad_q = g->grad_q + i * heads * dim, *b = (REAL *)basis;
    NAME(logits)(p, i, vectors, scores, decay, weight);
    for (int64_t n = 0; n < vectors; n++)
        values[n] = offset[n] = lse[n] = grad_a[n] = (VEC){0};
    NAME(dots)(go, g->y + i * heads * dim, heads, dim, -1, (REAL *)offset);
    for (int64_t h = 0; h < heads; h++) {
        ((REAL *)offset)[h] += g->grad_lse[i * heads + h];
        ((REAL *)lse)[h] = g->lse[i * heads + h];
    }
    for (int64_t m = 0; m < end - begin; m++)
        for (int64_t n = 0; n < vectors; n++)
            weight[m * vectors + n] = EXP(weight[m * vectors + n] - lse[n]);
    memset(table, 0, sizeof(VEC) * rows * vectors); /* G = W^T go transposed, [K, H] */
    for (int64_t h = 0; h < heads; h++) {
        REAL *restrict sum = (REAL *)line;
        memset(sum, 0, sizeof(REAL) * count);
        for (int64_t d = 0; d < dim; d++) {
            const REAL *restrict w = p->weight + (h * dim + d) * count;
            const REAL s = go[h * dim + d];
            for (int64_t m = 0; m < count; m++) sum[m] += s * w[m];
        }
        for (int64_t m = 0; m < count; m++) ((REAL *)table)[m * vectors * LANES + h] = sum[m];
    }
    memset(grad_q, 0, sizeof(REAL) * heads * dim);
    int64_t run = g->run_ptr[i];
    for (int64_t e = begin; e < end; e++) {
        const REAL d = p->distance[e];
        const VEC *row = weight + (e - begin) * vectors;
        if (NAME(starts_run)(p, e, begin)) {
            NAME(dots)(go, p->v + p->source[e] * heads * dim, heads, dim, 1, (REAL *)values);
            for (int64_t n = 0; n < vectors; n++) run_weight[n] = run_score[n] = (VEC){0};
        }
        const int64_t first = NAME(basis)(p, d, window, b);
        VEC along = {0};
        for (int64_t n = 0; n < vectors; n++) {
            const VEC *G = table + first * vectors + n;
            VEC even = {0}, odd = {0}; /* two chains of additions instead of one */
            for (int64_t m = 0; m < window; m += 2) {
                even += b[m] * G[m * vectors];
                odd += b[m + 1] * G[(m + 1) * vectors];
            }
            const VEC delta = row[n] * (values[n] + even + odd + offset[n]);
            grad_a[n] += delta * (d * d);
            run_weight[n] += row[n];
            run_score[n] += delta;
            if (g->grad_distance) {
                VEC slope = {0};
                for (int64_t m = 0; m < window; m++)
                    slope += b[m] * ((REAL)(first + m + 1) * p->spacing - d) * G[m * vectors];
                along += 2 * d * decay[n] * delta + row[n] * slope * narrow;
            }
        }
        if (g->grad_distance) {
            REAL sum = 0;
            for (int64_t n = 0; n < LANES; n++) sum += along[n];
            g->grad_distance[e] = sum;
        }
        if (NAME(ends_run)(p, e, end)) {
            NAME(add_scaled)((REAL *)run_score, p->k + p->source[e] * heads * dim, heads, dim,
                             factor, grad_q);
            memcpy(g->run_weight + run * heads, run_weight, sizeof(REAL) * heads);
            memcpy(g->run_score + run * heads, run_score, sizeof(REAL) * heads);
            run++;
        }
    }
    memcpy(g->grad_a + i * heads, grad_a, sizeof(REAL) * heads);
}

/* Gradients that atom j receives as a source: from its runs, in the order of their targets. */
static ALWAYS_INLINE void NAME(backward_source)(const NAME(problem) *p, const NAME(gradients) *g,
                                                int64_t j, const runs *r) {
    const int64_t heads = p->heads, dim = p->dim;
    const REAL factor = (REAL)1 / SQRT((REAL)dim);
    REAL *grad_k = g->grad_k + j * heads * dim, *grad_v = g->grad_v + j * heads * dim;
    memset(grad_k, 0, sizeof(REAL) * heads * dim);
    memset(grad_v, 0, sizeof(REAL) * heads * dim);
    for (int64_t n = r->source_ptr[j]; n < r->source_ptr[j + 1]; n++) {
        const int64_t run = r->by_source[n], i = r->target[run];
        NAME(add_scaled)(g->run_score + run * heads, p->q + i * heads * dim, heads, dim, factor,
                         grad_k);
        NAME(add_scaled)(g->run_weight + run * heads, g->grad_y + i * heads * dim, heads, dim, 1,
                         grad_v);
    }
}

/* One vector of heads is the common case, and worth code of its own. */
static void NAME(forward_one)(const NAME(problem) *p, int64_t i, int64_t vectors, VEC *room,
                                     REAL *y, REAL *lse, REAL *mean) {
    if (vectors == 1) NAME(forward_atom)(p, i, 1, room, y, lse, mean);
    else NAME(forward_atom)(p, i, vectors, room, y, lse, mean);
}

static void NAME(backward_one)(const NAME(problem) *p, const NAME(gradients) *g, int64_t i,
                                      int64_t vectors, VEC *room) {
    if (vectors == 1) NAME(backward_atom)(p, g, i, 1, room);
    else NAME(backward_atom)(p, g, i, vectors, room);
}

static void NAME(source_one)(const NAME(problem) *p, const NAME(gradients) *g, int64_t j,
                                    const runs *r) {
    NAME(backward_source)(p, g, j, r);
}

static VEC *NAME(make_room)(const NAME(problem) *p, int64_t vectors) {
    int64_t longest = 0;
    for (int64_t i = 0; i < p->atoms; i++) {
        const int64_t size = p->row_ptr[i + 1] - p->row_ptr[i];
        longest = size > longest ? size : longest;
    }
    const int64_t flat = (NAME(window)(p) + p->count) / LANES + 2;
    const int64_t size = (8 + 2 * NAME(rows)(p) + longest) * vectors + flat;
    return aligned_alloc(sizeof(VEC), sizeof(VEC) * (size_t)size);
}

static int NAME(periodic_attention_forward)(const NAME(problem) *p, int threads, REAL *y, REAL *lse,
                                            REAL *mean) {
    const int64_t vectors = (p->heads + LANES - 1) / LANES;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        VEC *room = NAME(make_room)(p, vectors);
        if (!room) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < p->atoms; i++)
            if (!failed) NAME(forward_one)(p, i, vectors, room, y, lse, mean);
        free(room);
    }
    return failed;
}

static int NAME(periodic_attention_backward)(const NAME(problem) *p, NAME(gradients) *g,
                                             int threads) {
    const int64_t vectors = (p->heads + LANES - 1) / LANES;
    runs r;
    int failed = make_runs(p->source, p->row_ptr, p->atoms, &r);
    const size_t size = sizeof(REAL) * (size_t)(r.number * p->heads + 1);
    g->run_ptr = r.run_ptr;
    g->run_weight = malloc(size);
    g->run_score = malloc(size);
    failed |= !g->run_weight || !g->run_score;
#pragma omp parallel num_threads(threads)
    {
        VEC *room = NAME(make_room)(p, vectors);
        if (!room) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < p->atoms; i++)
            if (!failed) NAME(backward_one)(p, g, i, vectors, room);
#pragma omp for schedule(dynamic, 8)
        for (int64_t j = 0; j < p->atoms; j++)
            if (!failed) NAME(source_one)(p, g, j, &r);
        free(room);
    }
    free(g->run_weight);
    free(g->run_score);
    free_runs(&r);
    return failed;
}
