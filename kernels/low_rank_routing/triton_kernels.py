"""The Triton kernels of low-rank routing; ``triton_ops.py`` launches them.

Formulas and names follow ``reference.py``. Arrays are contiguous: k, v, y [T, H, D]; lse_decode
[T, H]; z [B, H, M, D]; lse_encode [B, H, M]; q and second (the queries of decoding) [1, H, M, D],
or [B, H, M, D] if BATCHED. ``items`` [items, 3] holds mesh, first token and end of pieces of work.
These are chunks of tokens for the kernels that own a tile of latents and write a part of a sum for
each item (``encode``, ``latent_gradient``, ``query_gradients``), and single tiles of tokens for
those that walk over the latents (``decode``, ``token_gradients``). Every number has one writer and
every sum one order.

A tile has TOKENS tokens and LATENTS latents; DIM is D padded to a power of two. Logits and their
sums are in units of log 2 inside a kernel. Everything is computed in ACC, but for the factors of
matrix products: those of logits have the tokens' type, the others are rounded to FACTOR. PRECISION
says how tensor cores multiply float32.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
HALF_RANGE = tl.constexpr(57.0)  # 40 in natural logarithms; float32 begins at 2**-126


@triton.jit
def _work(items, H: tl.constexpr, TILES: tl.constexpr):
    """Return this program's item, mesh, first token, end, head and tile; heads are adjacent."""
    program = tl.program_id(0).to(tl.int64)
    item = program // (H * TILES)
    head = program // TILES % H
    mesh = tl.load(items + 3 * item)
    begin = tl.load(items + 3 * item + 1)
    end = tl.load(items + 3 * item + 2)
    return item, mesh, begin, end, head, (program % TILES).to(tl.int32)


@triton.jit
def _load(array, row, present, D: tl.constexpr, DIM: tl.constexpr):
    """Load rows [ROWS, DIM] of D numbers each, 0 where nothing is."""
    column = tl.arange(0, DIM)
    mask = present[:, None] & (column < D)
    return tl.load(array + row[:, None] * D + column, mask=mask, other=0)


@triton.jit
def _store(array, row, present, values, D: tl.constexpr, DIM: tl.constexpr):
    """Store rows [ROWS, DIM] of D numbers each."""
    column = tl.arange(0, DIM)
    tl.store(array + row[:, None] * D + column, values, mask=present[:, None] & (column < D))


@triton.jit
def _logits(left, right, SCALE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """Compute the logits of two tiles, in units of log 2."""
    s = tl.dot(left, tl.trans(right), input_precision=PRECISION, out_dtype=ACC)
    return s * (SCALE * LOG2E)


@triton.jit
def _add_product(total, left, right, FACTOR: tl.constexpr, PRECISION: tl.constexpr):
    """Return total + left @ right, with factors rounded to FACTOR."""
    return tl.dot(
        left.to(FACTOR), right.to(FACTOR), total, input_precision=PRECISION, out_dtype=total.dtype
    )


@triton.jit
def _attend(s, values, largest, total, mean, FACTOR: tl.constexpr, PRECISION: tl.constexpr):
    """Make a step of the online softmax over the columns of s: largest logit, sum, weighted sum."""
    larger = tl.maximum(largest, tl.max(s, 1))
    p = tl.exp2(s - larger[:, None])
    shrink = tl.exp2(largest - larger)
    mean = _add_product(mean * shrink[:, None], p, values, FACTOR, PRECISION)
    return larger, total * shrink + tl.sum(p, 1), mean


@triton.jit
def encode(
    q, k, v, items, part_z, part_lse,
    SCALE: tl.constexpr, BATCHED: tl.constexpr, TILES: tl.constexpr,
    H: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    LATENTS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write z and lse of an item's tokens: part_z [items, H, M, D] and part_lse [items, H, M]."""
    item, mesh, begin, end, head, tile = _work(items, H, TILES)
    m = tile * LATENTS + tl.arange(0, LATENTS)
    query = _load(q, (mesh * BATCHED * H + head) * M + m, m < M, D, DIM)
    largest = tl.full([LATENTS], -float("inf"), ACC)
    total = tl.zeros([LATENTS], ACC)
    mean = tl.zeros([LATENTS, DIM], ACC)
    for start in range(begin, end, TOKENS):
        n = start + tl.arange(0, TOKENS)
        present = n < end
        key = _load(k, n * H + head, present, D, DIM)
        value = _load(v, n * H + head, present, D, DIM)
        absent = tl.where(present, 0.0, -float("inf")).to(ACC)
        s = _logits(query.to(key.dtype), key, SCALE, ACC, PRECISION) + absent
        largest, total, mean = _attend(s, value, largest, total, mean, FACTOR, PRECISION)
    row = (item * H + head) * M + m
    _store(part_z, row, m < M, mean / total[:, None], D, DIM)
    tl.store(part_lse + row, (largest + tl.log2(total)) / LOG2E, mask=m < M)


@triton.jit
def merge(
    part_z, part_lse, item_ptr, z, lse,
    HM: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Merge z and lse of the items ``item_ptr[b]:item_ptr[b + 1]`` into those of mesh b."""
    blocks: tl.constexpr = (HM + ROWS - 1) // ROWS
    mesh = tl.program_id(0).to(tl.int64) // blocks
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, DIM)
    largest = tl.full([ROWS], -float("inf"), ACC)
    total = tl.zeros([ROWS], ACC)
    mean = tl.zeros([ROWS, DIM], ACC)
    end = tl.load(item_ptr + mesh + 1)
    for start in range(tl.load(item_ptr + mesh), end, ITEMS):
        item = start + tl.arange(0, ITEMS)
        there = item[:, None] * HM + row
        mask = (item < end)[:, None] & (row < HM)
        logit = tl.load(part_lse + there, mask=mask, other=0) * LOG2E
        logit = tl.where((item < end)[:, None], logit, -float("inf"))
        part_mask = mask[:, :, None] & (column < D)
        part = tl.load(part_z + there[:, :, None] * D + column, mask=part_mask, other=0)
        larger = tl.maximum(largest, tl.max(logit, 0))
        weight = tl.exp2(logit - larger)
        shrink = tl.exp2(largest - larger)
        largest = larger
        total = total * shrink + tl.sum(weight, 0)
        mean = mean * shrink[:, None] + tl.sum(weight[:, :, None] * part, 0)
    own = mesh * HM + row
    total = tl.where(total > 0, total, 1)  # an empty mesh has no item: z = 0 and lse = -inf
    _store(z, own, row < HM, mean / total[:, None], D, DIM)
    tl.store(lse + own, (largest + tl.log2(total)) / LOG2E, mask=row < HM)


@triton.jit
def decode(
    q, k, z, items, y, lse,
    SCALE: tl.constexpr, BATCHED: tl.constexpr,
    H: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    LATENTS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write y and lse of a tile of tokens."""
    _, mesh, begin, end, head, _ = _work(items, H, 1)
    n = begin + tl.arange(0, TOKENS)
    row = n * H + head
    key = _load(k, row, n < end, D, DIM)
    largest = tl.full([TOKENS], -float("inf"), ACC)
    total = tl.zeros([TOKENS], ACC)
    mean = tl.zeros([TOKENS, DIM], ACC)
    for start in range(0, M, LATENTS):
        m = start + tl.arange(0, LATENTS)
        query = _load(q, (mesh * BATCHED * H + head) * M + m, m < M, D, DIM)
        latent = _load(z, (mesh * H + head) * M + m, m < M, D, DIM)
        absent = tl.where(m < M, 0.0, -float("inf")).to(ACC)
        s = _logits(key, query.to(key.dtype), SCALE, ACC, PRECISION) + absent
        largest, total, mean = _attend(s, latent, largest, total, mean, FACTOR, PRECISION)
    _store(y, row, n < end, mean / total[:, None], D, DIM)
    tl.store(lse + row, (largest + tl.log2(total)) / LOG2E, mask=n < end)


@triton.jit
def latent_gradient(
    grad_y, q, k, lse, items, part_z,
    SCALE: tl.constexpr, BATCHED: tl.constexpr, TILES: tl.constexpr,
    H: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    LATENTS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write an item's part of the gradient for z: part_z [items, H, M, D]."""
    item, mesh, begin, end, head, tile = _work(items, H, TILES)
    m = tile * LATENTS + tl.arange(0, LATENTS)
    query = _load(q, (mesh * BATCHED * H + head) * M + m, m < M, D, DIM)
    total = tl.zeros([LATENTS, DIM], ACC)
    for start in range(begin, end, TOKENS):
        n = start + tl.arange(0, TOKENS)
        present = n < end
        key = _load(k, n * H + head, present, D, DIM)
        received = _load(grad_y, n * H + head, present, D, DIM)
        level = tl.load(lse + n * H + head, mask=present, other=float("inf")) * LOG2E
        p = tl.exp2(_logits(query.to(key.dtype), key, SCALE, ACC, PRECISION) - level)
        total = _add_product(total, p, received, FACTOR, PRECISION)
    _store(part_z, (item * H + head) * M + m, m < M, total, D, DIM)


@triton.jit
def _apart(s_encode, s_decode, level_m, level_n, m_there, n_there):
    """Compute E and P with an exponential for each."""
    e = tl.exp2(s_encode - tl.where(n_there, level_m, float("inf")))
    p = tl.exp2(s_decode - tl.where(m_there, level_n, float("inf")))
    return e, p


@triton.jit
def _weights(s_encode, s_decode, level_m, level_n, m_there, n_there, SEPARATE: tl.constexpr):
    """Compute E and P; level_m, level_n are lse_encode and lse_decode, inf where nothing is.

    Unless SEPARATE, both logits are the same s. Then, with G = exp(s - (level_m + level_n) / 2),
    E = G a b and P = G / (a b), where a depends on the token and b on the latent: one exponential
    for both. G, a and b neither overflow nor underflow as long as levels do not differ by too much.
    """
    if SEPARATE:
        e, p = _apart(s_encode, s_decode, level_m, level_n, m_there, n_there)
    else:
        inf = float("inf")
        most_m, least_m = tl.max(tl.where(m_there, level_m, -inf)), tl.min(level_m)
        most_n, least_n = tl.max(tl.where(n_there, level_n, -inf)), tl.min(level_n)
        if tl.maximum(most_m - least_n, most_n - least_m) < 2 * HALF_RANGE:
            centre = 0.5 * (most_m + least_m)
            log_a = 0.5 * (tl.where(n_there, level_n, centre) - centre)
            log_b = 0.5 * (centre - tl.where(m_there, level_m, centre))
            g = tl.exp2(s_encode - 0.5 * level_m - 0.5 * level_n)
            e = g * tl.exp2(log_a) * tl.exp2(log_b)
            p = g * tl.exp2(-log_a) * tl.exp2(-log_b)
        else:
            e, p = _apart(s_encode, s_decode, level_m, level_n, m_there, n_there)
    return e, p


@triton.jit
def query_gradients(
    grad_y, q, second, k, v, y, z, grad_z, lse_encode, lse_decode, items,
    part_q, part_second, grad_k, grad_v,
    SCALE: tl.constexpr, BATCHED: tl.constexpr, SEPARATE: tl.constexpr, WHOLE: tl.constexpr,
    TILES: tl.constexpr, H: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    LATENTS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write an item's parts of the gradients for q and second, without SCALE: [items, H, M, D].

    If WHOLE, one tile holds all latents; grad_k and grad_v of the item's tokens are written too.
    """
    item, mesh, begin, end, head, tile = _work(items, H, TILES)
    m = tile * LATENTS + tl.arange(0, LATENTS)
    m_there = m < M
    at = (mesh * BATCHED * H + head) * M + m
    own = (mesh * H + head) * M + m
    query = _load(q, at, m_there, D, DIM).to(k.dtype.element_ty)
    other = query
    if SEPARATE:
        other = _load(second, at, m_there, D, DIM).to(k.dtype.element_ty)
    latent = _load(z, own, m_there, D, DIM)
    # Rounded as in the products, so that gradients for the logits of a latent sum to zero.
    grad_latent = _load(grad_z, own, m_there, D, DIM).to(FACTOR)
    level_m = tl.load(lse_encode + own, mask=m_there, other=float("inf"))[:, None] * LOG2E
    delta_m = tl.sum(grad_latent.to(ACC) * latent, 1)[:, None]
    latent = latent.to(FACTOR)
    sum_q = tl.zeros([LATENTS, DIM], ACC)
    sum_second = tl.zeros([LATENTS, DIM], ACC)
    for start in range(begin, end, TOKENS):
        n = start + tl.arange(0, TOKENS)
        n_there = n < end
        row = n * H + head
        key = _load(k, row, n_there, D, DIM)
        level_n = tl.load(lse_decode + row, mask=n_there, other=float("inf"))[None, :] * LOG2E
        s_encode = _logits(query, key, SCALE, ACC, PRECISION)
        s_decode = _logits(other, key, SCALE, ACC, PRECISION) if SEPARATE else s_encode
        e, p = _weights(
            s_encode, s_decode, level_m, level_n, m_there[:, None], n_there[None, :], SEPARATE
        )
        if WHOLE:  # loaded again: held by all warps through the loop, it would fill the registers
            factor = _load(grad_z, own, m_there, D, DIM)
            total = tl.zeros([TOKENS, DIM], ACC)
            total = _add_product(total, tl.trans(e), factor, FACTOR, PRECISION)
            _store(grad_v, row, n_there, total, D, DIM)
        value = _load(v, row, n_there, D, DIM)
        received = _load(grad_y, row, n_there, D, DIM)
        delta_n = tl.sum(received.to(ACC) * _load(y, row, n_there, D, DIM).to(ACC), 1)[None, :]
        zero = tl.zeros([LATENTS, TOKENS], ACC)
        e *= _add_product(zero, grad_latent, tl.trans(value), FACTOR, PRECISION) - delta_m
        p *= _add_product(zero, latent, tl.trans(received), FACTOR, PRECISION) - delta_n
        if SEPARATE:
            sum_second = _add_product(sum_second, p, key, FACTOR, PRECISION)
        else:
            e += p
        sum_q = _add_product(sum_q, e, key, FACTOR, PRECISION)
        if WHOLE:
            factor = _load(q, at, m_there, D, DIM)
            total = tl.zeros([TOKENS, DIM], ACC)
            total = _add_product(total, tl.trans(e), factor, FACTOR, PRECISION)
            if SEPARATE:
                factor = _load(second, at, m_there, D, DIM)
                total = _add_product(total, tl.trans(p), factor, FACTOR, PRECISION)
            _store(grad_k, row, n_there, total * SCALE, D, DIM)
    part = (item * H + head) * M + m
    _store(part_q, part, m_there, sum_q, D, DIM)
    if SEPARATE:
        _store(part_second, part, m_there, sum_second, D, DIM)


@triton.jit
def token_gradients(
    grad_y, q, second, k, v, y, z, grad_z, lse_encode, lse_decode, items, grad_k, grad_v,
    SCALE: tl.constexpr, BATCHED: tl.constexpr, SEPARATE: tl.constexpr,
    H: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    LATENTS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write grad_k and grad_v of a tile of tokens if ``query_gradients`` does not."""
    _, mesh, begin, end, head, _ = _work(items, H, 1)
    n = begin + tl.arange(0, TOKENS)
    n_there = n < end
    row = n * H + head
    key = _load(k, row, n_there, D, DIM)
    value = _load(v, row, n_there, D, DIM)
    received = _load(grad_y, row, n_there, D, DIM)
    level_n = tl.load(lse_decode + row, mask=n_there, other=float("inf"))[:, None] * LOG2E
    delta_n = tl.sum(received.to(ACC) * _load(y, row, n_there, D, DIM).to(ACC), 1)[:, None]
    sum_k = tl.zeros([TOKENS, DIM], ACC)
    sum_v = tl.zeros([TOKENS, DIM], ACC)
    for start in range(0, M, LATENTS):
        m = start + tl.arange(0, LATENTS)
        m_there = m < M
        at = (mesh * BATCHED * H + head) * M + m
        own = (mesh * H + head) * M + m
        query = _load(q, at, m_there, D, DIM).to(key.dtype)
        other = query
        if SEPARATE:
            other = _load(second, at, m_there, D, DIM).to(key.dtype)
        latent = _load(z, own, m_there, D, DIM)
        grad_latent = _load(grad_z, own, m_there, D, DIM).to(FACTOR)
        level_m = tl.load(lse_encode + own, mask=m_there, other=float("inf"))[None, :] * LOG2E
        delta_m = tl.sum(grad_latent.to(ACC) * latent, 1)[None, :]
        s_encode = _logits(key, query, SCALE, ACC, PRECISION)
        s_decode = _logits(key, other, SCALE, ACC, PRECISION) if SEPARATE else s_encode
        e, p = _weights(
            s_encode, s_decode, level_m, level_n, m_there[None, :], n_there[:, None], SEPARATE
        )
        sum_v = _add_product(sum_v, e, grad_latent, FACTOR, PRECISION)
        zero = tl.zeros([TOKENS, LATENTS], ACC)
        e *= _add_product(zero, value, tl.trans(grad_latent), FACTOR, PRECISION) - delta_m
        p *= _add_product(zero, received, tl.trans(latent), FACTOR, PRECISION) - delta_n
        if SEPARATE:
            sum_k = _add_product(sum_k, p, other, FACTOR, PRECISION)
        else:
            e += p
        sum_k = _add_product(sum_k, e, query, FACTOR, PRECISION)
    _store(grad_k, row, n_there, sum_k * SCALE, D, DIM)
    _store(grad_v, row, n_there, sum_v, D, DIM)


@triton.jit
def add(
    parts, item_ptr, total,
    FACTOR: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ITEMS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sum parts [items, SIZE], times FACTOR: row g is that of ``item_ptr[g]:item_ptr[g + 1]``."""
    blocks: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    group = tl.program_id(0).to(tl.int64) // blocks
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    result = tl.zeros([BLOCK], ACC)
    end = tl.load(item_ptr + group + 1)
    for start in range(tl.load(item_ptr + group), end, ITEMS):
        item = start + tl.arange(0, ITEMS)
        mask = (item < end)[:, None] & (column < SIZE)
        result += tl.sum(tl.load(parts + item[:, None] * SIZE + column, mask=mask, other=0), 0)
    tl.store(total + group * SIZE + column, result * FACTOR, mask=column < SIZE)
