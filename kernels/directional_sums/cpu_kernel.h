/* One precision of directional sums, for one kind of processor.
 *
 * REAL, PRECISION(x) and NAME(x) are set by ../cpu_common/variant.h. Arrays are contiguous: radial
 * (r) [E, C], values (v) [M, C], table (y) [E, F], sums (A) [N, C, F]. The neighbours of atom i are
 * row_ptr[i] .. row_ptr[i + 1]. What is needed of one atom is first copied to rows of whole vectors,
 * with zeros at their ends.
 */

typedef struct {
    const REAL *radial, *values, *table;
    const int64_t *source, *row_ptr;
    int64_t targets, atoms, edges, channels, functions;
} NAME(problem);

#define VEC PRECISION(vec)
#define LANES ((int64_t)(sizeof(VEC) / sizeof(REAL)))
#define PADDED(n) (((n) + LANES - 1) / LANES)
#define AT(x, n) (((const REAL *)(x))[n])

/* What one thread works with, for one atom: */
typedef struct {
    VEC *weight;  /* r v [neighbours, C], channels in lanes */
    VEC *table;   /* y [neighbours, F], functions in lanes */
    VEC *by_row;  /* A or its gradient [C, F], functions in lanes */
    VEC *by_lane; /* that gradient [F, C], channels in lanes */
    VEC *result;  /* the gradient by y of one neighbour [F] */
} NAME(room);

static VEC *NAME(allocate)(int64_t vectors) {
    return aligned_alloc(64, 64 * (size_t)(vectors * (int64_t)sizeof(VEC) / 64 + 1));
}

static int NAME(make_room)(const NAME(problem) *p, int64_t most, NAME(room) *r) {
    const int64_t channels = PADDED(p->channels), functions = PADDED(p->functions);
    r->weight = NAME(allocate)(most * channels);
    r->table = NAME(allocate)(most * functions);
    r->by_row = NAME(allocate)((channels * LANES + 3) * functions);
    r->by_lane = NAME(allocate)(functions * LANES * channels);
    r->result = NAME(allocate)(functions);
    return r->weight && r->table && r->by_row && r->by_lane && r->result;
}

static void NAME(free_room)(NAME(room) *r) {
    free(r->weight);
    free(r->table);
    free(r->by_row);
    free(r->by_lane);
    free(r->result);
}

static ALWAYS_INLINE void NAME(copy_row)(const REAL *restrict x, int64_t size, VEC *restrict out) {
    out[PADDED(size) - 1] = (VEC){0};
    memcpy(out, x, sizeof(REAL) * (size_t)size);
}

/* Weights and functions of the neighbours of an atom. */
static ALWAYS_INLINE void NAME(gather)(const NAME(problem) *p, int64_t begin, int64_t size,
                                       const NAME(room) *r) {
    const int64_t channels = PADDED(p->channels), functions = PADDED(p->functions);
    for (int64_t e = 0; e < size; e++) {
        const REAL *radial = p->radial + (begin + e) * p->channels;
        const REAL *value = p->values + p->source[begin + e] * p->channels;
        VEC *weight = r->weight + e * channels;
        weight[channels - 1] = (VEC){0};
        for (int64_t c = 0; c < p->channels; c++) ((REAL *)weight)[c] = radial[c] * value[c];
        NAME(copy_row)(p->table + (begin + e) * p->functions, p->functions, r->table + e * functions);
    }
}

/* sums[c, f] = sum_e weight[e, c] table[e, f], four channels and two vectors of functions at a time */
static ALWAYS_INLINE void NAME(outer)(const NAME(room) *r, int64_t size, int64_t channels,
                                      int64_t functions) {
    const int64_t stride = channels * LANES;
    for (int64_t c = 0; c < stride; c += 4)
        for (int64_t f = 0; f < functions; f += 2) {
            const int64_t other = f + 1 < functions; /* else the same vector twice */
            VEC sum[8] = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
            for (int64_t e = 0; e < size; e++) {
                const VEC *y = r->table + e * functions + f;
                const VEC first = y[0], second = y[other];
                for (int64_t t = 0; t < 4; t++) {
                    const REAL w = AT(r->weight, e * stride + c + t);
                    sum[t] += w * first;
                    sum[4 + t] += w * second;
                }
            }
            for (int64_t t = 0; t < 4; t++) {
                r->by_row[(c + t) * functions + f] = sum[t];
                r->by_row[(c + t) * functions + f + other] = sum[other ? 4 + t : t];
            }
        }
}

/* out[d] = sum_n factor[n] rows[n, d] of `count` numbers n and `width` vectors d */
static ALWAYS_INLINE void NAME(combine)(const VEC *restrict factor, int64_t count,
                                        const VEC *restrict rows, int64_t width,
                                        VEC *restrict out) {
    int64_t d = 0;
    for (; d + 3 < width; d += 4) {
        VEC sum[4] = {{0}, {0}, {0}, {0}};
        for (int64_t n = 0; n < count; n++)
            for (int64_t t = 0; t < 4; t++) sum[t] += AT(factor, n) * rows[n * width + d + t];
        for (int64_t t = 0; t < 4; t++) out[d + t] = sum[t];
    }
    for (; d < width; d++) {
        VEC sum[4] = {{0}, {0}, {0}, {0}};
        int64_t n = 0;
        for (; n + 3 < count; n += 4)
            for (int64_t t = 0; t < 4; t++) sum[t] += AT(factor, n + t) * rows[(n + t) * width + d];
        for (; n < count; n++) sum[0] += AT(factor, n) * rows[n * width + d];
        out[d] = sum[0] + sum[1] + (sum[2] + sum[3]);
    }
}

static ALWAYS_INLINE void NAME(forward_atom)(const NAME(problem) *p, const NAME(room) *r, int64_t i,
                                             int64_t channels, int64_t functions, REAL *sums) {
    const int64_t begin = p->row_ptr[i], size = p->row_ptr[i + 1] - begin;
    NAME(gather)(p, begin, size, r);
    NAME(outer)(r, size, channels, functions);
    for (int64_t c = 0; c < p->channels; c++)
        memcpy(sums + (i * p->channels + c) * p->functions, r->by_row + c * functions,
               sizeof(REAL) * (size_t)p->functions);
}

/* The gradients of an atom's neighbours; those by the values of their sources are left in `terms`
 * [E, C]. */
static ALWAYS_INLINE void NAME(backward_atom)(const NAME(problem) *p, const NAME(room) *r, int64_t i,
                                              int64_t channels, int64_t functions, const REAL *grad,
                                              REAL *by_radial, REAL *terms, REAL *by_table) {
    const int64_t begin = p->row_ptr[i], size = p->row_ptr[i + 1] - begin;
    NAME(gather)(p, begin, size, r);
    memset(r->by_lane, 0, sizeof(VEC) * (size_t)(functions * LANES * channels));
    for (int64_t c = 0; c < p->channels; c++) {
        const REAL *row = grad + (i * p->channels + c) * p->functions;
        NAME(copy_row)(row, p->functions, r->by_row + c * functions);
        for (int64_t f = 0; f < p->functions; f++)
            ((REAL *)r->by_lane)[f * channels * LANES + c] = row[f];
    }
    VEC *by_weight = r->weight; /* each row of r v is read before its gradient is written there */
    for (int64_t e = 0; e < size; e++) {
        NAME(combine)(r->weight + e * channels, p->channels, r->by_row, functions,
                      r->result);
        memcpy(by_table + (begin + e) * p->functions, r->result, sizeof(REAL) * (size_t)p->functions);
        NAME(combine)(r->table + e * functions, p->functions, r->by_lane, channels,
                      by_weight + e * channels);
        const REAL *radial = p->radial + (begin + e) * p->channels;
        const REAL *value = p->values + p->source[begin + e] * p->channels;
        for (int64_t c = 0; c < p->channels; c++) {
            const REAL slope = AT(by_weight + e * channels, c);
            by_radial[(begin + e) * p->channels + c] = slope * value[c];
            terms[(begin + e) * p->channels + c] = slope * radial[c];
        }
    }
}

static int NAME(run)(const NAME(problem) *p, int threads, const REAL *grad, REAL *sums,
                     REAL *by_radial, REAL *terms, REAL *by_table) {
    int64_t most;
    int state = check(p->source, p->row_ptr, p->targets, p->atoms, p->edges, &most);
    if (state) return state;
    const int64_t channels = PADDED(p->channels), functions = PADDED(p->functions);
#pragma omp parallel num_threads(threads)
    {
        NAME(room) r;
        const int ready = NAME(make_room)(p, most, &r);
        if (!ready) {
#pragma omp atomic write
            state = NO_MEMORY;
        }
        /* constants where it pays: 32 channels, l <= 3 */
        const int usual = channels * LANES == 32 && functions * LANES == 16;
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < p->targets; i++) {
            if (!ready) continue;
            if (grad && usual)
                NAME(backward_atom)(p, &r, i, 32 / LANES, 16 / LANES, grad, by_radial, terms,
                                    by_table);
            else if (grad)
                NAME(backward_atom)(p, &r, i, channels, functions, grad, by_radial, terms, by_table);
            else if (usual)
                NAME(forward_atom)(p, &r, i, 32 / LANES, 16 / LANES, sums);
            else
                NAME(forward_atom)(p, &r, i, channels, functions, sums);
        }
        NAME(free_room)(&r);
    }
    return state;
}

/* More threads than one cost more than they bring where there is little to do. */
static int NAME(useful)(const NAME(problem) *p, int threads) {
    return p->edges * p->channels * p->functions < (1 << 18) ? 1 : threads;
}

static int NAME(directional_sums_forward)(const NAME(problem) *p, int threads, REAL *sums) {
    return NAME(run)(p, NAME(useful)(p, threads), NULL, sums, NULL, NULL, NULL);
}

static int NAME(directional_sums_backward)(const NAME(problem) *p, int threads, const REAL *grad,
                                           REAL *by_radial, REAL *by_value, REAL *by_table) {
    const int64_t channels = p->channels;
    threads = NAME(useful)(p, threads);
    REAL *terms = malloc(sizeof(REAL) * (size_t)(p->edges * channels + 1));
    int64_t *ptr = NULL, *by_source = NULL;
    int state = terms ? NAME(run)(p, threads, grad, NULL, by_radial, terms, by_table) : NO_MEMORY;
    if (!state) state = sort_by_source(p->source, p->edges, p->atoms, &ptr, &by_source);
    if (!state) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t j = 0; j < p->atoms; j++) {
            REAL *restrict sum = by_value + j * channels;
            memset(sum, 0, sizeof(REAL) * (size_t)channels);
            for (int64_t n = ptr[j]; n < ptr[j + 1]; n++) {
                const REAL *restrict term = terms + by_source[n] * channels;
                for (int64_t c = 0; c < channels; c++) sum[c] += term[c];
            }
        }
    }
    free(terms);
    free(ptr);
    free(by_source);
    return state;
}

#undef VEC
#undef LANES
#undef PADDED
#undef AT
