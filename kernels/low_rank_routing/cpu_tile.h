/* The innermost loops, of one head and one tile of tokens; cpu_kernel.h includes this file for heads
 * of DIM numbers, a constant for the sizes in use, which unrolls the loops and keeps BLOCK of the DIM
 * sums in registers. TILE(x) gives names.
 *
 * Lanes are tokens. A tile holds k, v, ... as vectors [tokens / WIDTH, DIM]; q, z, ... of the latents
 * are numbers [M, DIM], each of which multiplies a whole vector. Logits are in units of log 2.
 */

/* sum_d x[d] y[d] + start */
static ALWAYS_INLINE WIDE TILE(dot)(const NAME(room) *r, const REAL *restrict x,
                                    const WIDE *restrict y, WIDE start) {
    for (int64_t d = 0; d < DIM; d++) start += x[d] * y[d];
    return start;
}

/* Adds a tile to the sums of `number` latents from m on: of exp(logit), and of exp(logit) v,
 * relative to the largest logit that a lane has seen. */
static ALWAYS_INLINE void TILE(encode_latents)(const NAME(room) *r, int64_t vectors, int64_t m,
                                               int64_t number) {
    const WIDE *restrict k = r->k, *restrict v = r->v, *restrict start = r->start;
    WIDE *restrict score = r->score, largest[LATENTS], total[LATENTS], shrink[LATENTS];
    for (int64_t l = 0; l < number; l++) largest[l] = r->largest[m + l];
    for (int64_t x = 0; x < vectors; x++)
        for (int64_t l = 0; l < number; l++) {
            const WIDE s = TILE(dot)(r, r->q + (m + l) * DIM, k + x * DIM, start[x]);
            largest[l] = NAME(larger)(largest[l], s);
            score[number * x + l] = s;
        }
    for (int64_t l = 0; l < number; l++) {
        shrink[l] = EXP2(r->largest[m + l] - largest[l]);
        total[l] = r->total[m + l] * shrink[l];
        r->largest[m + l] = largest[l];
    }
    for (int64_t block = 0; block < DIM; block += BLOCK) {
        WIDE sum[LATENTS][BLOCK];
        for (int64_t l = 0; l < number; l++)
            for (int64_t d = 0; d < BLOCK; d++)
                sum[l][d] = r->sum[(m + l) * DIM + block + d] * shrink[l];
        for (int64_t x = 0; x < vectors; x++)
            for (int64_t l = 0; l < number; l++) {
                WIDE weight = score[number * x + l];
                if (!block) {
                    weight = EXP2(weight - largest[l]);
                    total[l] += weight;
                    if (BLOCK < DIM) score[number * x + l] = weight;
                }
                for (int64_t d = 0; d < BLOCK; d++) sum[l][d] += weight * v[x * DIM + block + d];
            }
        for (int64_t l = 0; l < number; l++)
            for (int64_t d = 0; d < BLOCK; d++) r->sum[(m + l) * DIM + block + d] = sum[l][d];
    }
    for (int64_t l = 0; l < number; l++) r->total[m + l] = total[l];
}

static void TILE(encode)(const NAME(room) *r, int64_t vectors, int64_t latents) {
    int64_t m = 0;
    for (; m + LATENTS <= latents; m += LATENTS) TILE(encode_latents)(r, vectors, m, LATENTS);
    for (; m < latents; m++) TILE(encode_latents)(r, vectors, m, 1);
}

/* y and log2 of the sum over latents, of each token; y takes the place of v. */
static void TILE(decode)(const NAME(room) *r, int64_t vectors, int64_t latents) {
    const REAL *restrict q = r->q, *restrict z = r->z;
    WIDE *restrict score = r->score;
    for (int64_t x = 0; x < vectors; x++) {
        WIDE largest = (WIDE){0} - (REAL)INFINITY, total = {0}, inverse = {0};
        for (int64_t block = 0; block < DIM; block += BLOCK) {
            WIDE k[BLOCK];
            for (int64_t d = 0; d < BLOCK; d++) k[d] = r->k[x * DIM + block + d];
            for (int64_t m = 0; m < latents; m++) {
                WIDE s = block ? score[m] : (WIDE){0};
                for (int64_t d = 0; d < BLOCK; d++) s += q[m * DIM + block + d] * k[d];
                if (block + BLOCK == DIM) largest = NAME(larger)(largest, s);
                score[m] = s;
            }
        }
        for (int64_t block = 0; block < DIM; block += BLOCK) {
            WIDE y[BLOCK];
            for (int64_t d = 0; d < BLOCK; d++) y[d] = (WIDE){0};
            for (int64_t m = 0; m < latents; m++) {
                WIDE weight = score[m];
                if (!block) {
                    weight = EXP2(weight - largest);
                    total += weight;
                    if (BLOCK < DIM) score[m] = weight;
                }
                for (int64_t d = 0; d < BLOCK; d++) y[d] += weight * z[m * DIM + block + d];
            }
            if (!block) inverse = 1 / total;
            for (int64_t d = 0; d < BLOCK; d++) r->v[x * DIM + block + d] = y[d] * inverse;
        }
        r->start[x] = largest + NAME(log2)(total);
    }
}

/* Adds a tile's P dy to the sums of `number` latents from m on. */
static ALWAYS_INLINE void TILE(latent_gradient_latents)(const NAME(room) *r, int64_t vectors,
                                                        int64_t m, int64_t number) {
    const WIDE *restrict k = r->k, *restrict received = r->grad_y, *restrict start = r->start;
    const REAL *restrict q = r->q + m * DIM;
    WIDE *restrict score = r->score;
    for (int64_t x = 0; x < vectors && BLOCK < DIM; x++)
        for (int64_t l = 0; l < number; l++)
            score[number * x + l] = EXP2(TILE(dot)(r, q + l * DIM, k + x * DIM, start[x]));
    for (int64_t block = 0; block < DIM; block += BLOCK) {
        WIDE sum[LATENTS][BLOCK];
        for (int64_t l = 0; l < number; l++)
            for (int64_t d = 0; d < BLOCK; d++) sum[l][d] = r->sum[(m + l) * DIM + block + d];
        for (int64_t x = 0; x < vectors; x++)
            for (int64_t l = 0; l < number; l++) {
                const WIDE weight = BLOCK < DIM ? score[number * x + l]
                    : EXP2(TILE(dot)(r, q + l * DIM, k + x * DIM, start[x]));
                for (int64_t d = 0; d < BLOCK; d++)
                    sum[l][d] += weight * received[x * DIM + block + d];
            }
        for (int64_t l = 0; l < number; l++)
            for (int64_t d = 0; d < BLOCK; d++) r->sum[(m + l) * DIM + block + d] = sum[l][d];
    }
}

static void TILE(latent_gradient)(const NAME(room) *r, int64_t vectors, int64_t latents) {
    int64_t m = 0;
    for (; m + LATENTS <= latents; m += LATENTS)
        TILE(latent_gradient_latents)(r, vectors, m, LATENTS);
    for (; m < latents; m++) TILE(latent_gradient_latents)(r, vectors, m, 1);
}

/* Gradients of the logits of one vector of tokens and `number` latents from m on, and E. With
 * `separate` queries of the decoding, those of its own logits stand apart. */
static ALWAYS_INLINE void TILE(logit_gradients)(const NAME(room) *r, int64_t x, int64_t m,
                                                int64_t number, int separate, WIDE *restrict e,
                                                WIDE *restrict grad, WIDE *restrict other_grad) {
    const REAL *restrict q = r->q + m * DIM, *restrict other = separate ? r->decode_q + m * DIM : q;
    const REAL *restrict z = r->z + m * DIM, *restrict grad_z = r->grad_z + m * DIM;
    const WIDE *restrict k = r->k + x * DIM, *restrict v = r->v + x * DIM;
    const WIDE *restrict received = r->grad_y + x * DIM;
    WIDE s[LATENTS], t[LATENTS], of_e[LATENTS], of_p[LATENTS];
    for (int64_t l = 0; l < number; l++) {
        s[l] = t[l] = r->start[x];
        of_e[l] = (WIDE){0} - r->delta_encode[m + l];
        of_p[l] = -r->delta[x];
    }
    for (int64_t d = 0; d < DIM; d++)
        for (int64_t l = 0; l < number; l++) {
            s[l] += q[l * DIM + d] * k[d];
            if (separate) t[l] += other[l * DIM + d] * k[d];
            of_e[l] += grad_z[l * DIM + d] * v[d];
            of_p[l] += z[l * DIM + d] * received[d];
        }
    for (int64_t l = 0; l < number; l++) {
        e[m + l] = EXP2(s[l] - r->lse_encode[m + l]);
        of_e[l] *= e[m + l];
        of_p[l] *= EXP2((separate ? t[l] : s[l]) - r->lse[x]);
        grad[m + l] = separate ? of_e[l] : of_e[l] + of_p[l];
        if (separate) other_grad[m + l] = of_p[l];
    }
}

/* dk and dv of one vector of tokens. They take the places of v and dy. */
static ALWAYS_INLINE void TILE(vector_gradients)(const NAME(room) *r, int64_t x, int64_t latents,
                                                 int separate, const WIDE *restrict e,
                                                 const WIDE *restrict grad,
                                                 const WIDE *restrict other_grad) {
    const REAL *restrict q = r->q, *restrict other = r->decode_q, *restrict grad_z = r->grad_z;
    for (int64_t block = 0; block < DIM; block += BLOCK) {
        WIDE grad_k[BLOCK], grad_v[BLOCK];
        for (int64_t d = 0; d < BLOCK; d++) grad_k[d] = grad_v[d] = (WIDE){0};
        for (int64_t m = 0; m < latents; m++) {
            const int64_t row = m * DIM + block;
            for (int64_t d = 0; d < BLOCK; d++) grad_k[d] += grad[m] * q[row + d];
            for (int64_t d = 0; d < BLOCK; d++) grad_v[d] += e[m] * grad_z[row + d];
            if (!separate) continue;
            for (int64_t d = 0; d < BLOCK; d++) grad_k[d] += other_grad[m] * other[row + d];
        }
        for (int64_t d = 0; d < BLOCK; d++) r->v[x * DIM + block + d] = grad_k[d] * LN_2;
        for (int64_t d = 0; d < BLOCK; d++) r->grad_y[x * DIM + block + d] = grad_v[d];
    }
}

/* Adds a tile's part of dq to the sums of `number` latents from m on. */
static ALWAYS_INLINE void TILE(query_gradients)(const NAME(room) *r, const WIDE *restrict grad,
                                                int64_t vectors, int64_t latents, int64_t m,
                                                int64_t number, WIDE *restrict sums) {
    const WIDE *restrict k = r->k;
    for (int64_t block = 0; block < DIM; block += BLOCK) {
        WIDE sum[LATENTS][BLOCK];
        for (int64_t l = 0; l < number; l++)
            for (int64_t d = 0; d < BLOCK; d++) sum[l][d] = sums[(m + l) * DIM + block + d];
        for (int64_t x = 0; x < vectors; x++)
            for (int64_t l = 0; l < number; l++)
                for (int64_t d = 0; d < BLOCK; d++)
                    sum[l][d] += grad[x * latents + m + l] * k[x * DIM + block + d];
        for (int64_t l = 0; l < number; l++)
            for (int64_t d = 0; d < BLOCK; d++) sums[(m + l) * DIM + block + d] = sum[l][d];
    }
}

static ALWAYS_INLINE void TILE(all_gradients)(const NAME(room) *r, int64_t vectors, int64_t latents,
                                              int separate) {
    for (int64_t x = 0; x < vectors; x++) {
        WIDE *grad = r->grad + x * latents, *other_grad = r->other_grad + x * latents;
        int64_t m = 0;
        for (; m + LATENTS <= latents; m += LATENTS)
            TILE(logit_gradients)(r, x, m, LATENTS, separate, r->score, grad, other_grad);
        for (; m < latents; m++)
            TILE(logit_gradients)(r, x, m, 1, separate, r->score, grad, other_grad);
        TILE(vector_gradients)(r, x, latents, separate, r->score, grad, other_grad);
    }
    for (int side = 0; side <= separate; side++) {
        const WIDE *grad = side ? r->other_grad : r->grad;
        WIDE *sums = side ? r->other_sum : r->sum;
        int64_t m = 0;
        for (; m + LATENTS <= latents; m += LATENTS)
            TILE(query_gradients)(r, grad, vectors, latents, m, LATENTS, sums);
        for (; m < latents; m++) TILE(query_gradients)(r, grad, vectors, latents, m, 1, sums);
    }
}

static void TILE(token_gradients)(const NAME(room) *r, int64_t vectors, int64_t latents) {
    if (r->decode_q) TILE(all_gradients)(r, vectors, latents, 1);
    else TILE(all_gradients)(r, vectors, latents, 0);
}
