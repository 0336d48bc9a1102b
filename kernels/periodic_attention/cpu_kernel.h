/* One precision of the periodic attention kernel, for one kind of processor.
 *
 * REAL, WIDE (a vector of LANES or 2 LANES numbers), EXP2 (of a WIDE), LOG2, SQRT, PRECISION(x) and
 * NAME(x) are set by ../cpu_common/variant.h. Formulas and names follow README.md. Arrays are contiguous: q, k, v, y, ...
 * [N, H, D]; a, lse [N, H]; weight [H, D, K]; mean (c) [N, H, K]; distance [E]; bias NULL, [E] or
 * [E, H]; of the moments, if there are channels: u [N, H, C], u_weight (U) [H, C, K], table (f)
 * [E, F], moments (M) [N, H, C, F]. The neighbours of atom i are row_ptr[i] .. row_ptr[i + 1].
 *
 * The lanes of a vector are LANES heads, a group; the last group may be padded. Everything works on
 * one atom and one group at a time. q, k, v, ... are first copied "by lanes", to [N, groups, D] of
 * vectors. Logits are kept in units of log 2.
 */

typedef struct {
    const REAL *q, *k, *v, *a, *weight, *distance, *bias, *u, *u_weight, *table;
    const int64_t *source, *row_ptr;
    int64_t atoms, neighbours, heads, dim, count, bias_heads, channels, functions;
    int64_t origin;             /* of a part of the list: its first atom; 0 for all of it */
    REAL spacing, width, reach; /* reach: a radial function is negligible this far from its centre */
} NAME(problem);

typedef struct {
    const REAL *grad_y, *grad_lse, *grad_moments, *y, *moments;
    REAL *grad_q, *grad_k, *grad_v, *grad_a, *grad_u, *grad_u_weight;
    REAL *grad_distance, *grad_table; /* NULL where nobody asks */
} NAME(gradients);

#define VEC PRECISION(vec)           /* LANES numbers, */
#define BITS PRECISION(bits)         /* as many integers, */
#define COUNTING PRECISION(counting) /* and 0, 1, 2, ... */
#define LANES ((int64_t)(sizeof(VEC) / sizeof(REAL)))
#define WIDTH ((int64_t)(sizeof(WIDE) / sizeof(REAL)))
#define LOG_2E ((REAL)1.44269504088896340736)
#define LN_2 ((REAL)0.69314718055994530942)

/* Neighbours are contracted with radial functions BLOCK at a time, and c is a sum of such partial
 * sums, for accuracy in single precision. */
enum { NAME(BLOCK) = 64 };

/* What is shared by all threads: sizes, copies by lanes, and what the target pass of the backward
 * leaves for the source pass. */
typedef struct {
    int64_t groups, window, rows;   /* window: radial functions that can reach one distance */
    VEC *q, *k, *v, *grad_y;        /* [N, groups, D] */
    VEC *u;                         /* [N, groups, C] */
    VEC *weight;                    /* [groups, K, D] */
    VEC *u_weight;                  /* [groups, C, rows] */
    VEC *run_weight, *run_score;    /* A_ij and the gradient of q.k of every run, [runs, groups] */
    VEC *run_u;                     /* the gradient of u_j of every run, [runs, groups, C] */
    VEC *atom_u_weight;             /* that of U of every atom, [N, groups, C, rows] */
    runs by;
} NAME(shared);

/* What one thread works with. */
typedef struct {
    VEC *basis;                   /* [BLOCK, window / LANES] */
    VEC *weight, *radial, *slope; /* of the neighbours of one atom */
    VEC *run, *other;             /* of the runs of one atom */
    int64_t *place;               /* of the runs of one atom: where their other atom stands */
    VEC *table, *block;           /* [rows]: c or G by lanes, and partial sums of c */
    VEC *out;                     /* [D] */
    VEC *value;                   /* [BLOCK, C]: u_j + U.b(d), times P in the forward */
    VEC *by_value;                /* [neighbours of one atom, C]: the gradient of P times that */
    VEC *moments, *part;          /* [C, F]: M or its gradient by lanes, and partial sums */
    VEC *grad_u_weight;           /* [C, rows]: partial sums */
} NAME(room);

/* One group of heads of one atom. */
typedef struct {
    int64_t atom, group;
    int64_t head, heads; /* the first, and how many lanes are not padding */
    int64_t dim, window, channels, functions; /* constants where it pays */
} NAME(unit);

/* x [heads, dim] of the group by lanes, and back. */
static ALWAYS_INLINE void NAME(to_lanes)(const REAL *restrict x, const NAME(unit) u, int64_t dim,
                                         VEC *restrict out) {
    if (u.heads < LANES) memset(out, 0, sizeof(VEC) * dim);
    for (int64_t h = 0; h < u.heads; h++)
        for (int64_t d = 0; d < dim; d++) ((REAL *)(out + d))[h] = x[(u.head + h) * dim + d];
}

static ALWAYS_INLINE void NAME(from_lanes)(const VEC *restrict x, const NAME(unit) u, int64_t dim,
                                           REAL *restrict out) {
    for (int64_t h = 0; h < u.heads; h++)
        for (int64_t d = 0; d < dim; d++) out[(u.head + h) * dim + d] = ((REAL *)(x + d))[h];
}

/* One number per head, x [heads], by lanes. */
static ALWAYS_INLINE VEC NAME(load)(const REAL *x, const NAME(unit) u) {
    VEC v = {0};
    for (int64_t h = 0; h < u.heads; h++) v[h] = x[u.head + h];
    return v;
}

static ALWAYS_INLINE void NAME(store)(VEC v, const NAME(unit) u, REAL *x) {
    for (int64_t h = 0; h < u.heads; h++) x[u.head + h] = v[h];
}

/* sum_d x[d] y[d], in four chains of additions instead of one */
static ALWAYS_INLINE VEC NAME(dot)(const VEC *restrict x, const VEC *restrict y, int64_t dim) {
    VEC sum[4] = {{0}, {0}, {0}, {0}};
    int64_t d = 0;
    for (; d + 3 < dim; d += 4)
        for (int64_t t = 0; t < 4; t++) sum[t] += x[d + t] * y[d + t];
    for (; d < dim; d++) sum[0] += x[d] * y[d];
    return sum[0] + sum[1] + (sum[2] + sum[3]);
}

/* out[d] += s x[d] */
static ALWAYS_INLINE void NAME(add_scaled)(VEC s, const VEC *restrict x, int64_t dim,
                                           VEC *restrict out) {
    for (int64_t d = 0; d < dim; d++) out[d] += s * x[d];
}

/* out[d] = sum_n factor[n] x[place[n], d], in registers: 8 vectors at a time */
static ALWAYS_INLINE void NAME(weighted_sum)(const VEC *restrict factor,
                                             const int64_t *restrict place, int64_t size,
                                             const VEC *restrict x, int64_t dim,
                                             VEC *restrict out) {
    int64_t d = 0;
    for (; d + 7 < dim; d += 8) {
        VEC sum[8] = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
        for (int64_t n = 0; n < size; n++)
            for (int64_t t = 0; t < 8; t++) sum[t] += factor[n] * x[place[n] * dim + d + t];
        for (int64_t t = 0; t < 8; t++) out[d + t] = sum[t];
    }
    for (; d < dim; d++) {
        out[d] = (VEC){0};
        for (int64_t n = 0; n < size; n++) out[d] += factor[n] * x[place[n] * dim + d];
    }
}

/* b_k(d) of the neighbours begin .. begin + size, each for the window of functions k that begins at
 * first[e] (counted from 0). */
static ALWAYS_INLINE void NAME(basis)(const NAME(problem) *p, const NAME(shared) *s, int64_t begin,
                                      int64_t size, int64_t window, int32_t *restrict first,
                                      REAL *restrict b) {
    const REAL scale = (REAL)0.84932180028801904272 / p->width; /* sqrt(log2(e) / 2) */
    const REAL step = p->spacing * scale, per_spacing = 1 / p->spacing, reach = p->reach;
    const REAL last = (REAL)(s->rows - window);
    const WIDE counting = *(const WIDE *)COUNTING;
    REAL start[NAME(BLOCK)];
    for (int64_t e = 0; e < size; e++) {
        const REAL d = p->distance[begin + e];
        REAL k = (d - reach) * per_spacing;
        k = k > 0 ? k : 0;
        k = k < last ? k : last;
        first[e] = (int32_t)k;
        start[e] = d * scale - (REAL)(first[e] + 1) * step;
    }
    for (int64_t e = 0; e < size; e++)
        for (int64_t n = 0; n < window; n += WIDTH) {
            const WIDE x = start[e] - (counting + (REAL)n) * step;
            *(WIDE *)(b + e * window + n) = EXP2(-x * x);
        }
}

/* Weights of the neighbours before normalisation, exp(logit - largest logit); returns the largest
 * in units of log 2. */
static ALWAYS_INLINE VEC NAME(weights)(const NAME(problem) *p, const NAME(shared) *s,
                                       const NAME(unit) u, VEC *restrict weight) {
    const int64_t begin = p->row_ptr[u.atom], size = p->row_ptr[u.atom + 1] - begin;
    const VEC *query = s->q + (u.atom * s->groups + u.group) * u.dim;
    const VEC decay = LOG_2E * NAME(load)(p->a + u.atom * p->heads, u);
    const REAL factor = LOG_2E / SQRT((REAL)u.dim);
    VEC largest = (VEC){0} - (REAL)INFINITY;
    for (int64_t run = s->by.run_ptr[u.atom]; run < s->by.run_ptr[u.atom + 1]; run++) {
        const int64_t first = s->by.begin[run], end = s->by.begin[run + 1];
        const VEC *key = s->k + ((p->source[first] - p->origin) * s->groups + u.group) * u.dim;
        const VEC score = factor * NAME(dot)(query, key, u.dim);
        for (int64_t e = first; e < end; e++) {
            const REAL d = p->distance[e];
            VEC x = score + decay * (d * d);
            if (p->bias_heads == 1) x += p->bias[e] * LOG_2E;
            else if (p->bias_heads) x += LOG_2E * NAME(load)(p->bias + e * p->heads, u);
            const BITS more = x > largest;
            largest = (VEC)((more & (BITS)x) | (~more & (BITS)largest));
            weight[e - begin] = x;
        }
    }
    for (int64_t e = 0; e < size; e++) weight[e] -= largest;
    for (int64_t e = 0; e < size; e += WIDTH / LANES) /* there is room for one more */
        *(WIDE *)(weight + e) = EXP2(*(WIDE *)(weight + e));
    return largest;
}

/* sum_m b[m] x[m], in four chains; a window has a multiple of four functions */
static ALWAYS_INLINE VEC NAME(project)(const REAL *restrict b, const VEC *restrict x,
                                       int64_t window) {
    VEC sum[4] = {{0}, {0}, {0}, {0}};
    for (int64_t m = 0; m < window; m += 4)
        for (int64_t t = 0; t < 4; t++) sum[t] += b[m + t] * x[m + t];
    return sum[0] + sum[1] + (sum[2] + sum[3]);
}

/* u_j + U.b(d) of some neighbours: value[e, c] */
static ALWAYS_INLINE void NAME(values)(const NAME(problem) *p, const NAME(shared) *s,
                                       const NAME(unit) u, int64_t from, int64_t size,
                                       const int32_t *restrict first, const REAL *restrict b,
                                       VEC *restrict value) {
    for (int64_t e = 0; e < size; e++) {
        const VEC *own = s->u + ((p->source[from + e] - p->origin) * s->groups + u.group) * u.channels;
        const VEC *weight = s->u_weight + u.group * u.channels * s->rows + first[e];
        for (int64_t c = 0; c < u.channels; c++)
            value[e * u.channels + c] =
                own[c] + NAME(project)(b + e * u.window, weight + c * s->rows, u.window);
    }
}

/* moments[c, f] += sum_e value[e, c] table[e, f], in registers: 8 functions at a time */
static ALWAYS_INLINE void NAME(add_moments)(const VEC *restrict value, const REAL *restrict table,
                                            int64_t size, const NAME(unit) u,
                                            VEC *restrict moments) {
    const int64_t channels = u.channels, functions = u.functions;
    for (int64_t c = 0; c < channels; c++) {
        int64_t f = 0;
        for (; f + 7 < functions; f += 8) {
            VEC sum[8] = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
            for (int64_t e = 0; e < size; e++)
                for (int64_t t = 0; t < 8; t++)
                    sum[t] += table[e * functions + f + t] * value[e * channels + c];
            for (int64_t t = 0; t < 8; t++) moments[c * functions + f + t] += sum[t];
        }
        for (; f < functions; f++) {
            VEC sum = {0};
            for (int64_t e = 0; e < size; e++)
                sum += table[e * functions + f] * value[e * channels + c];
            moments[c * functions + f] += sum;
        }
    }
}

static ALWAYS_INLINE void NAME(forward_unit)(const NAME(problem) *p, const NAME(shared) *s,
                                             const NAME(unit) u, const NAME(room) *r,
                                             REAL *restrict y, REAL *restrict lse,
                                             REAL *restrict mean, REAL *restrict moments) {
    const int64_t begin = p->row_ptr[u.atom], end = p->row_ptr[u.atom + 1];
    const int64_t dim = u.dim, window = u.window, rows = s->rows;
    int32_t first[NAME(BLOCK)];
    VEC *restrict table = r->table, *restrict block = r->block, *restrict out = r->out;
    REAL *restrict b = (REAL *)r->basis;
    const VEC largest = NAME(weights)(p, s, u, r->weight);
    memset(table, 0, sizeof(VEC) * rows); /* c */
    memset(r->moments, 0, sizeof(VEC) * u.channels * u.functions);
    for (int64_t from = begin; from < end; from += NAME(BLOCK)) {
        const int64_t size = end - from < NAME(BLOCK) ? end - from : NAME(BLOCK);
        NAME(basis)(p, s, from, size, window, first, b);
        memset(block, 0, sizeof(VEC) * rows);
        for (int64_t e = 0; e < size; e++) {
            const VEC weight = r->weight[from - begin + e];
            VEC *c = block + first[e];
            for (int64_t m = 0; m < window; m++) c[m] += b[e * window + m] * weight;
        }
        for (int64_t m = 0; m < rows; m++) table[m] += block[m];
        if (!u.channels) continue;
        NAME(values)(p, s, u, from, size, first, b, r->value);
        for (int64_t e = 0; e < size; e++)
            for (int64_t c = 0; c < u.channels; c++)
                r->value[e * u.channels + c] *= r->weight[from - begin + e];
        NAME(add_moments)(r->value, p->table + from * u.functions, size, u, r->moments);
    }
    VEC total = {0};
    const int64_t first_run = s->by.run_ptr[u.atom];
    const int64_t number = s->by.run_ptr[u.atom + 1] - first_run;
    for (int64_t n = 0; n < number; n++) {
        const int64_t from = s->by.begin[first_run + n], to = s->by.begin[first_run + n + 1];
        VEC sum = {0};
        for (int64_t e = from; e < to; e++) sum += r->weight[e - begin];
        total += sum;
        r->run[n] = sum;
        r->place[n] = (p->source[from] - p->origin) * s->groups + u.group;
    }
    NAME(weighted_sum)(r->run, r->place, number, s->v, dim, out);
    for (int64_t k = 0; k < p->count; k++)
        NAME(add_scaled)(table[k], s->weight + (u.group * p->count + k) * dim, dim, out);
    const VEC inverse = 1 / total;
    for (int64_t d = 0; d < dim; d++) out[d] *= inverse;
    for (int64_t k = 0; k < p->count; k++) table[k] *= inverse;
    for (int64_t h = 0; h < u.heads; h++) total[h] = LN_2 * (largest[h] + LOG2(total[h]));
    NAME(store)(total, u, lse + u.atom * p->heads);
    NAME(from_lanes)(out, u, dim, y + u.atom * p->heads * dim);
    NAME(from_lanes)(table, u, p->count, mean + u.atom * p->heads * p->count);
    const int64_t numbers = u.channels * u.functions;
    for (int64_t n = 0; n < numbers; n++) r->moments[n] *= inverse;
    NAME(from_lanes)(r->moments, u, numbers, moments + u.atom * p->heads * numbers);
}

/* b'(d) times width^2 of a window of functions, (mu_k - d) b_k */
static ALWAYS_INLINE void NAME(slopes)(const NAME(problem) *p, int64_t size, const int32_t *first,
                                       int64_t from, int64_t window, REAL *restrict b) {
    for (int64_t e = 0; e < size; e++) {
        const REAL start = (REAL)(first[e] + 1) * p->spacing - p->distance[from + e];
        for (int64_t m = 0; m < window; m++)
            b[e * window + m] *= start + (REAL)m * p->spacing;
    }
}

/* The gradient of the moments of a block of neighbours: adds that of P to radial and, by d, to
 * slope; keeps that of u_j of every neighbour in by_value; adds that of U to grad_u_weight. `b` is
 * the basis. */
static ALWAYS_INLINE void NAME(backward_moments)(const NAME(problem) *p, const NAME(gradients) *g,
                                                 const NAME(shared) *s, const NAME(unit) u,
                                                 int64_t from, int64_t size, const int32_t *first,
                                                 const REAL *restrict b, VEC normal,
                                                 const NAME(room) *r) {
    const int64_t begin = p->row_ptr[u.atom], channels = u.channels, functions = u.functions;
    const int64_t window = u.window;
    VEC *restrict by_value = r->by_value + (from - begin) * channels;
    NAME(values)(p, s, u, from, size, first, b, r->value);
    for (int64_t e = 0; e < size; e++) {
        const REAL *f = p->table + (from + e) * functions;
        VEC score = {0};
        for (int64_t c = 0; c < channels; c++) {
            const VEC *incoming = r->moments + c * functions;
            VEC sum[4] = {{0}, {0}, {0}, {0}};
            int64_t n = 0;
            for (; n + 3 < functions; n += 4)
                for (int64_t t = 0; t < 4; t++) sum[t] += f[n + t] * incoming[n + t];
            for (; n < functions; n++) sum[0] += f[n] * incoming[n];
            by_value[e * channels + c] = sum[0] + sum[1] + (sum[2] + sum[3]);
            score += by_value[e * channels + c] * r->value[e * channels + c];
        }
        r->radial[from - begin + e] += score;
    }
    if (g->grad_table)
        for (int64_t e = 0; e < size; e++) {
            REAL *out = g->grad_table + (from + e) * functions;
            const VEC weight = normal * r->weight[from - begin + e];
            for (int64_t f = 0; f < functions; f++) {
                VEC each = {0};
                for (int64_t c = 0; c < channels; c++)
                    each += r->value[e * channels + c] * r->moments[c * functions + f];
                each *= weight;
                REAL sum = u.group ? out[f] : 0;
                for (int64_t h = 0; h < u.heads; h++) sum += each[h];
                out[f] = sum;
            }
        }
    if (p->count) { /* partial sums, as of c */
        memset(r->grad_u_weight, 0, sizeof(VEC) * channels * s->rows);
        for (int64_t e = 0; e < size; e++) {
            const VEC weight = normal * r->weight[from - begin + e];
            for (int64_t c = 0; c < channels; c++) {
                const VEC sent = weight * by_value[e * channels + c];
                VEC *restrict out = r->grad_u_weight + c * s->rows + first[e];
                for (int64_t m = 0; m < window; m++) out[m] += b[e * window + m] * sent;
            }
        }
        VEC *restrict all = s->atom_u_weight + (u.atom * s->groups + u.group) * channels * s->rows;
        for (int64_t n = 0; n < channels * s->rows; n++) all[n] += r->grad_u_weight[n];
    }
}

/* G.b(d) of every neighbour, and if wanted its derivative by d times width^2; with what the moments
 * add to both. */
static ALWAYS_INLINE void NAME(projections)(const NAME(problem) *p, const NAME(gradients) *g,
                                            const NAME(shared) *s, const NAME(unit) u, VEC normal,
                                            const NAME(room) *r) {
    const int64_t begin = p->row_ptr[u.atom], end = p->row_ptr[u.atom + 1], window = u.window;
    int32_t first[NAME(BLOCK)];
    REAL *b = (REAL *)r->basis;
    for (int64_t from = begin; from < end; from += NAME(BLOCK)) {
        const int64_t size = end - from < NAME(BLOCK) ? end - from : NAME(BLOCK), at = from - begin;
        NAME(basis)(p, s, from, size, window, first, b);
        for (int64_t e = 0; e < size; e++)
            r->radial[at + e] = NAME(project)(b + e * window, r->table + first[e], window);
        if (u.channels) NAME(backward_moments)(p, g, s, u, from, size, first, b, normal, r);
        if (!g->grad_distance) continue;
        NAME(slopes)(p, size, first, from, window, b);
        for (int64_t e = 0; e < size; e++) {
            VEC slope = NAME(project)(b + e * window, r->table + first[e], window);
            for (int64_t c = 0; c < u.channels; c++) {
                const VEC *weight = s->u_weight + (u.group * u.channels + c) * s->rows + first[e];
                slope += r->by_value[(at + e) * u.channels + c] *
                         NAME(project)(b + e * window, weight, window);
            }
            r->slope[at + e] = slope;
        }
    }
}

/* The target pass: what atom i receives, and of its runs A_ij and the gradients of q.k and u_j. */
static ALWAYS_INLINE void NAME(backward_unit)(const NAME(problem) *p, const NAME(gradients) *g,
                                              const NAME(shared) *s, const NAME(unit) u,
                                              const NAME(room) *r) {
    const int64_t begin = p->row_ptr[u.atom], dim = u.dim, row = u.atom * p->heads;
    const int64_t channels = u.channels, numbers = channels * u.functions;
    const REAL factor = 1 / SQRT((REAL)dim), narrow = 1 / (p->width * p->width);
    const VEC *go = s->grad_y + (u.atom * s->groups + u.group) * dim;
    const VEC a = NAME(load)(p->a + row, u);
    memset(r->table, 0, sizeof(VEC) * s->rows); /* G = W^T go */
    for (int64_t k = 0; k < p->count; k++)
        r->table[k] = NAME(dot)(go, s->weight + (u.group * p->count + k) * dim, dim);
    /* Not from the saved log Z: the rounding error of a large logit is no small error of a weight. */
    NAME(weights)(p, s, u, r->weight);
    VEC sum[4] = {{0}, {0}, {0}, {0}};
    for (int64_t e = 0; e < p->row_ptr[u.atom + 1] - begin; e++) sum[e % 4] += r->weight[e];
    const VEC normal = 1 / (sum[0] + sum[1] + (sum[2] + sum[3]));
    NAME(to_lanes)(g->y + row * dim, u, dim, r->out);
    VEC offset = NAME(load)(g->grad_lse + row, u) - NAME(dot)(go, r->out, dim);
    if (channels) {
        NAME(to_lanes)(g->grad_moments + row * numbers, u, numbers, r->moments);
        NAME(to_lanes)(g->moments + row * numbers, u, numbers, r->part);
        offset -= NAME(dot)(r->moments, r->part, numbers);
    }
    NAME(projections)(p, g, s, u, normal, r);
    VEC grad_a = {0};
    const int64_t first_run = s->by.run_ptr[u.atom];
    const int64_t number = s->by.run_ptr[u.atom + 1] - first_run;
    for (int64_t n = 0; n < number; n++) {
        const int64_t run = first_run + n, from = s->by.begin[run], to = s->by.begin[run + 1];
        const int64_t place = (p->source[from] - p->origin) * s->groups + u.group;
        const VEC value = NAME(dot)(go, s->v + place * dim, dim) + offset;
        VEC run_weight = {0}, run_score = {0};
        VEC *run_u = s->run_u + (run * s->groups + u.group) * channels;
        for (int64_t c = 0; c < channels; c++) run_u[c] = (VEC){0};
        for (int64_t e = from; e < to; e++) {
            const REAL d = p->distance[e];
            const VEC weight = r->weight[e - begin] * normal;
            const VEC delta = weight * (value + r->radial[e - begin]);
            grad_a += delta * (d * d);
            run_weight += weight;
            run_score += delta;
            for (int64_t c = 0; c < channels; c++)
                run_u[c] += weight * r->by_value[(e - begin) * channels + c];
            if (!g->grad_distance) continue;
            const VEC along = 2 * d * a * delta + weight * r->slope[e - begin] * narrow;
            REAL sum = u.group ? g->grad_distance[e] : 0;
            for (int64_t h = 0; h < u.heads; h++) sum += along[h];
            g->grad_distance[e] = sum;
        }
        run_score *= factor;
        s->run_weight[run * s->groups + u.group] = run_weight;
        s->run_score[run * s->groups + u.group] = run_score;
        r->run[n] = run_score;
        r->place[n] = place;
    }
    NAME(store)(grad_a, u, g->grad_a + row);
    NAME(weighted_sum)(r->run, r->place, number, s->k, dim, r->out);
    NAME(from_lanes)(r->out, u, dim, g->grad_q + row * dim);
}

/* The source pass: what atom j receives, from its runs, in the order of their targets. */
static ALWAYS_INLINE void NAME(source_unit)(const NAME(problem) *p, const NAME(gradients) *g,
                                            const NAME(shared) *s, const NAME(unit) u,
                                            const NAME(room) *r) {
    const int64_t dim = u.dim, row = u.atom * p->heads * dim;
    const int64_t *by_source = s->by.by_source + s->by.source_ptr[u.atom];
    const int64_t number = s->by.source_ptr[u.atom + 1] - s->by.source_ptr[u.atom];
    for (int64_t n = 0; n < number; n++) {
        r->place[n] = s->by.target[by_source[n]] * s->groups + u.group;
        r->run[n] = s->run_score[by_source[n] * s->groups + u.group];
        r->other[n] = s->run_weight[by_source[n] * s->groups + u.group];
    }
    NAME(weighted_sum)(r->run, r->place, number, s->q, dim, r->out);
    NAME(from_lanes)(r->out, u, dim, g->grad_k + row);
    NAME(weighted_sum)(r->other, r->place, number, s->grad_y, dim, r->out);
    NAME(from_lanes)(r->out, u, dim, g->grad_v + row);
    if (!u.channels) return;
    for (int64_t c = 0; c < u.channels; c++) r->moments[c] = (VEC){0};
    for (int64_t n = 0; n < number; n++)
        for (int64_t c = 0; c < u.channels; c++)
            r->moments[c] += s->run_u[(by_source[n] * s->groups + u.group) * u.channels + c];
    NAME(from_lanes)(r->moments, u, u.channels, g->grad_u + u.atom * p->heads * u.channels);
}

/* The gradient of U of one group of heads: the sum over the atoms of the part, in their order. */
static void NAME(add_u_weight)(const NAME(problem) *p, const NAME(gradients) *g,
                               const NAME(shared) *s, int64_t group) {
    const int64_t left = p->heads - group * LANES, heads = left < LANES ? left : LANES;
    for (int64_t c = 0; c < p->channels; c++)
        for (int64_t k = 0; k < p->count; k++) {
            VEC sum = {0};
            for (int64_t i = 0; i < p->atoms; i++)
                sum += s->atom_u_weight[((i * s->groups + group) * p->channels + c) * s->rows + k];
            for (int64_t h = 0; h < heads; h++)
                g->grad_u_weight[((group * LANES + h) * p->channels + c) * p->count + k] += sum[h];
        }
}

/* Does CALL for each unit of atom i. Heads of 16 numbers and windows of 16 functions, as published,
 * are worth code of their own, without moments and with two channels of 16: constants unroll
 * loops. */
#define UNITS(i, s, CALL)                                                                          \
    for (int64_t group = 0; group < (s)->groups; group++) {                                        \
        const int64_t head = group * LANES, left = p->heads - head;                                \
        NAME(unit) u = {i, group, head, left < LANES ? left : LANES, p->dim, (s)->window,          \
                        p->channels, p->functions};                                                \
        const int published = u.dim == 16 && u.window == 16;                                       \
        if (published && u.channels == 0) {                                                        \
            u.dim = u.window = 16;                                                                 \
            u.channels = u.functions = 0;                                                          \
            CALL;                                                                                  \
        } else if (published && u.channels == 2 && u.functions == 16) {                            \
            u.dim = u.window = u.functions = 16;                                                   \
            u.channels = 2;                                                                        \
            CALL;                                                                                  \
        } else {                                                                                   \
            CALL;                                                                                  \
        }                                                                                          \
    }

static void NAME(forward_atom)(const NAME(problem) *p, const NAME(shared) *s, int64_t i,
                               const NAME(room) *r, REAL *y, REAL *lse, REAL *mean,
                               REAL *moments) {
    UNITS(i, s, NAME(forward_unit)(p, s, u, r, y, lse, mean, moments))
}

static void NAME(backward_atom)(const NAME(problem) *p, const NAME(gradients) *g,
                                const NAME(shared) *s, int64_t i, const NAME(room) *r) {
    UNITS(i, s, NAME(backward_unit)(p, g, s, u, r))
}

static void NAME(source_atom)(const NAME(problem) *p, const NAME(gradients) *g,
                              const NAME(shared) *s, int64_t j, const NAME(room) *r) {
    UNITS(j, s, NAME(source_unit)(p, g, s, u, r))
}

/* x [N, heads, dim] of atom i by lanes. */
static void NAME(copy_atom)(const NAME(problem) *p, const NAME(shared) *s, int64_t i,
                            const REAL *x, VEC *out) {
    UNITS(i, s, NAME(to_lanes)(x + i * p->heads * u.dim, u, u.dim, out + (i * s->groups + group) * u.dim))
}

static void NAME(copy_u)(const NAME(problem) *p, const NAME(shared) *s, int64_t i) {
    UNITS(i, s, NAME(to_lanes)(p->u + i * p->heads * u.channels, u, u.channels,
                               s->u + (i * s->groups + group) * u.channels))
}

static void *NAME(allocate)(int64_t vectors) {
    return aligned_alloc(64, 64 * (size_t)(vectors * (int64_t)sizeof(VEC) / 64 + 1));
}

/* Returns the memory that `room` points into, NULL when there is none. */
static VEC *NAME(make_room)(const NAME(problem) *p, const NAME(shared) *s, NAME(room) *r) {
    int64_t longest = 0, runs = 0;
    for (int64_t i = 0; i < p->atoms; i++) {
        const int64_t size = p->row_ptr[i + 1] - p->row_ptr[i];
        const int64_t out = s->by.run_ptr[i + 1] - s->by.run_ptr[i];
        const int64_t in = s->by.source_ptr[i + 1] - s->by.source_ptr[i];
        longest = size > longest ? size : longest;
        runs = out > runs ? out : runs;
        runs = in > runs ? in : runs;
    }
    longest += longest % 2; /* the weights are WIDE vectors */
    const int64_t basis = NAME(BLOCK) * s->window / LANES, places = runs * 8 / sizeof(VEC) + 1;
    const int64_t numbers = p->channels * p->functions, channels = p->channels;
    const int64_t of_moments = channels * (NAME(BLOCK) + longest + s->rows) + 2 * numbers;
    VEC *next = NAME(allocate)(basis + 3 * longest + 2 * runs + places + 2 * s->rows + p->dim +
                               of_moments);
    VEC *memory = next;
    if (!next) return NULL;
    r->basis = next, next += basis;
    r->weight = next, next += longest;
    r->radial = next, next += longest;
    r->slope = next, next += longest;
    r->run = next, next += runs;
    r->other = next, next += runs;
    r->place = (int64_t *)next, next += places;
    r->table = next, next += s->rows;
    r->block = next, next += s->rows;
    r->out = next, next += p->dim;
    r->value = next, next += channels * NAME(BLOCK);
    r->by_value = next, next += channels * longest;
    r->moments = next, next += numbers;
    r->part = next, next += numbers;
    r->grad_u_weight = next;
    return memory;
}

static void NAME(free_shared)(NAME(shared) *s) {
    VEC *all[] = {s->q, s->k, s->v, s->grad_y, s->weight, s->run_weight, s->run_score,
                  s->u, s->u_weight, s->run_u, s->atom_u_weight};
    for (size_t n = 0; n < sizeof(all) / sizeof(*all); n++) free(all[n]);
    free_runs(&s->by);
}

/* x [heads, dim, K] by lanes: element d, k of a head is at [d * by_dim + k * by_function]. */
static void NAME(copy_weight)(const NAME(problem) *p, const REAL *x, int64_t dim, int64_t by_dim,
                              int64_t by_function, int64_t of_group, VEC *out) {
    for (int64_t h = 0; h < p->heads; h++) {
        REAL *lane = (REAL *)(out + h / LANES * of_group) + h % LANES;
        for (int64_t d = 0; d < dim; d++)
            for (int64_t k = 0; k < p->count; k++)
                lane[(d * by_dim + k * by_function) * LANES] = x[(h * dim + d) * p->count + k];
    }
}

static int NAME(make_shared)(const NAME(problem) *p, int backward, int threads, NAME(shared) *s) {
    memset(s, 0, sizeof(*s));
    const int state = make_runs(p->source, p->row_ptr, p->atoms, p->origin, threads, &s->by);
    if (state != DONE) return state;
    const REAL needed = 2 * p->reach / p->spacing + 2; /* compared before it is an integer */
    const int64_t most = needed < (REAL)p->count ? (int64_t)needed : p->count, whole = 2 * LANES;
    s->window = (most + whole - 1) / whole * whole;
    s->rows = p->count > s->window ? p->count : s->window; /* of radial functions in tables */
    s->groups = (p->heads + LANES - 1) / LANES;
    const int64_t size = p->atoms * p->dim * s->groups, runs = backward ? s->by.number : 0;
    s->q = NAME(allocate)(size);
    s->k = NAME(allocate)(size);
    s->v = NAME(allocate)(size);
    s->grad_y = NAME(allocate)(backward ? size : 0);
    s->weight = NAME(allocate)(p->dim * p->count * s->groups);
    s->run_weight = NAME(allocate)(runs * s->groups);
    s->run_score = NAME(allocate)(runs * s->groups);
    if (!s->q || !s->k || !s->v || !s->grad_y || !s->weight || !s->run_weight || !s->run_score)
        return NO_MEMORY;
    const int64_t of_u = p->channels * s->rows, rows = backward ? p->atoms : 0;
    s->u = NAME(allocate)(p->atoms * p->channels * s->groups);
    s->u_weight = NAME(allocate)(of_u * s->groups);
    s->run_u = NAME(allocate)(runs * s->groups * p->channels);
    s->atom_u_weight = NAME(allocate)(rows * s->groups * of_u);
    if (!s->u || !s->u_weight || !s->run_u || !s->atom_u_weight) return NO_MEMORY;
    memset(s->weight, 0, sizeof(VEC) * p->dim * p->count * s->groups);
    memset(s->u_weight, 0, sizeof(VEC) * of_u * s->groups);
    NAME(copy_weight)(p, p->weight, p->dim, 1, p->dim, p->count * p->dim, s->weight);
    NAME(copy_weight)(p, p->u_weight, p->channels, s->rows, 1, of_u, s->u_weight);
    return DONE;
}

/* Forward where `g` is NULL, else backward. */
static ALWAYS_INLINE int NAME(run_part)(const NAME(problem) *p, const NAME(gradients) *g, int threads,
                                   REAL *y, REAL *lse, REAL *mean, REAL *moments) {
    NAME(shared) s;
    int state = NAME(make_shared)(p, g != NULL, threads, &s);
    if (state != DONE) {
        NAME(free_shared)(&s);
        return state;
    }
#pragma omp parallel num_threads(threads)
    {
        NAME(room) r;
        VEC *memory = NAME(make_room)(p, &s, &r);
        if (!memory) {
#pragma omp atomic write
            state = NO_MEMORY;
        }
        const int64_t row = s.groups * p->channels * s.rows;
#pragma omp barrier
        if (state == DONE) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < p->atoms; i++) {
                NAME(copy_atom)(p, &s, i, p->q, s.q);
                NAME(copy_atom)(p, &s, i, p->k, s.k);
                NAME(copy_atom)(p, &s, i, p->v, s.v);
                if (g) NAME(copy_atom)(p, &s, i, g->grad_y, s.grad_y);
                NAME(copy_u)(p, &s, i);
                if (g) memset(s.atom_u_weight + i * row, 0, sizeof(VEC) * row);
            }
#pragma omp for schedule(dynamic, 8)
            for (int64_t i = 0; i < p->atoms; i++) {
                if (g) NAME(backward_atom)(p, g, &s, i, &r);
                else NAME(forward_atom)(p, &s, i, &r, y, lse, mean, moments);
            }
            if (g) {
#pragma omp for schedule(dynamic, 8)
                for (int64_t j = 0; j < p->atoms; j++) NAME(source_atom)(p, g, &s, j, &r);
#pragma omp for schedule(static)
                for (int64_t group = 0; group < s.groups; group++) NAME(add_u_weight)(p, g, &s, group);
            }
        }
        free(memory);
    }
    NAME(free_shared)(&s);
    return state;
}

static ALWAYS_INLINE int NAME(run)(const NAME(problem) *p, const NAME(gradients) *g, int threads,
                                   REAL *y, REAL *lse, REAL *mean, REAL *moments) {
    int64_t *cut = NULL, parts;
    int state = make_parts(p->source, p->row_ptr, p->atoms, p->neighbours, threads, &cut, &parts);
    for (int64_t n = 0; state == DONE && n < parts; n++) {
        const int64_t i = cut[n], heads = i * p->heads, row = heads * p->dim;
        NAME(problem) part = *p;
        part.atoms = cut[n + 1] - i;
        part.origin = i;
        part.row_ptr += i;
        part.q += row, part.k += row, part.v += row;
        part.a += heads;
        part.u += heads * p->channels;
        const int64_t numbers = p->channels * p->functions;
        if (g) {
            NAME(gradients) of_part = *g;
            of_part.grad_y += row, of_part.y += row;
            of_part.grad_lse += heads;
            of_part.grad_q += row, of_part.grad_k += row, of_part.grad_v += row;
            of_part.grad_a += heads;
            of_part.grad_moments += heads * numbers, of_part.moments += heads * numbers;
            of_part.grad_u += heads * p->channels;
            state = NAME(run_part)(&part, &of_part, threads, NULL, NULL, NULL, NULL);
        } else {
            state = NAME(run_part)(&part, NULL, threads, y + row, lse + heads,
                                   mean + heads * p->count, moments + heads * numbers);
        }
    }
    free(cut);
    return state;
}

static int NAME(periodic_attention_forward)(const NAME(problem) *p, int threads, REAL *y, REAL *lse,
                                            REAL *mean, REAL *moments) {
    return NAME(run)(p, NULL, threads, y, lse, mean, moments);
}

static int NAME(periodic_attention_backward)(const NAME(problem) *p, const NAME(gradients) *g,
                                             int threads) {
    return NAME(run)(p, g, threads, NULL, NULL, NULL, NULL);
}

#undef VEC
#undef BITS
#undef COUNTING
#undef LANES
#undef WIDTH
#undef LOG_2E
#undef LN_2
#undef UNITS
