"""The Triton kernels of periodic attention; ``triton_ops.py`` launches them.

Formulas and names follow README.md. Arrays are contiguous: q, k, v, y [N, H, D]; a, lse [N, H];
mean_basis (c) and projected (G = W^T grad_y) [N, H, K]; distance, source [E]; bias [E, BIAS_HEADS],
none if that is 0. A program owns one atom and HEADS heads, and walks over its neighbours in blocks
of BLOCK. Every number has one writer and every sum one order.

HEADS, DIM and COUNT are H, D and K padded to powers of two; many heads are split into groups of
HEADS. Everything is computed in ACC, but for the factors of the products with the radial functions,
which are rounded to FACTOR; PRECISION says how tensor cores multiply float32.
"""

import triton
import triton.language as tl


@triton.jit
def _radial(d, number, SPACING: tl.constexpr, WIDTH: tl.constexpr):
    """Compute b_k(d) and x = (k spacing - d) / width; d and number = k - 1 broadcast."""
    x = ((number + 1).to(d.dtype) * SPACING - d) * (1 / WIDTH)
    return tl.exp(-0.5 * x * x), x


@triton.jit
def _gather(array, atom, head, present, H: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr):
    """Load rows of array [N, H, D] of atoms [BLOCK]: [BLOCK, HEADS, DIM], 0 where nothing is."""
    column = tl.arange(0, DIM)
    offset = (atom * (H * D))[:, None, None] + (head[:, None] * D + column)
    mask = present[:, None, None] & (head < H)[:, None] & (column < D)
    return tl.load(array + offset, mask=mask, other=0)


@triton.jit
def _logits(
    query, decay, key, d, bias, edge, head, present,
    H: tl.constexpr, D: tl.constexpr, BIAS_HEADS: tl.constexpr,
):  # fmt: skip
    """Compute logits [BLOCK, HEADS] of a block of neighbours, -inf for those not present."""
    logit = tl.sum(query * key, 2) * (D**-0.5) + decay * (d * d)[:, None]
    if BIAS_HEADS == 1:
        logit += tl.load(bias + edge, mask=present, other=0).to(d.dtype)[:, None]
    elif BIAS_HEADS > 1:
        visible = present[:, None] & (head < H)
        logit += tl.load(bias + edge[:, None] * H + head, mask=visible, other=0).to(d.dtype)
    return tl.where(present[:, None], logit, -float("inf"))


@triton.jit
def forward(
    q, k, v, a, distance, source, row_ptr, bias, attended, lse, mean_basis,
    H: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BIAS_HEADS: tl.constexpr,
    SPACING: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write attended = sum P v [N, H, D], mean_basis = sum P b and lse by an online softmax.

    The product is c^T = B^T P^T, since there are fewer heads than radial functions and the narrow
    side of a tensor core's tile, 8, is on the right.
    """
    atom = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, DIM)
    number = tl.arange(0, COUNT)
    row = atom * H + head
    own = row[:, None] * D + column
    own_mask = (head < H)[:, None] & (column < D)

    query = tl.load(q + own, mask=own_mask, other=0).to(ACC)
    decay = tl.load(a + row, mask=head < H, other=0).to(ACC)
    largest = tl.full([HEADS], -float("inf"), ACC)
    total = tl.zeros([HEADS], ACC)
    sum_v = tl.zeros([HEADS, DIM], ACC)
    mean = tl.zeros([COUNT, HEADS], ACC)
    end = tl.load(row_ptr + atom + 1)
    for start in range(tl.load(row_ptr + atom), end, BLOCK):
        edge = start + tl.arange(0, BLOCK).to(tl.int64)
        present = edge < end
        j = tl.load(source + edge, mask=present, other=0)
        d = tl.load(distance + edge, mask=present, other=0).to(ACC)
        key = _gather(k, j, head, present, H, D, DIM).to(ACC)
        logit = _logits(query, decay, key, d, bias, edge, head, present, H, D, BIAS_HEADS)
        larger = tl.maximum(largest, tl.max(logit, 0))
        # Where a head has seen no image yet, all logits are -inf, and -inf - (-inf) is no number.
        level = tl.where(larger == -float("inf"), 0, larger)
        p = tl.exp(logit - level)
        shrink = tl.exp(largest - level)
        largest = larger
        total = total * shrink + tl.sum(p, 0)
        image = _gather(v, j, head, present, H, D, DIM).to(ACC)
        sum_v = sum_v * shrink[:, None] + tl.sum(p[:, :, None] * image, 0)
        if K > 0:
            basis, _ = _radial(d[None, :], number[:, None], SPACING, WIDTH)
            mean = tl.dot(
                basis.to(FACTOR), p.to(FACTOR), mean * shrink, input_precision=PRECISION,
                out_dtype=ACC,
            )  # fmt: skip

    tl.store(attended + own, sum_v / total[:, None], mask=own_mask)
    tl.store(lse + row, largest + tl.log(total), mask=head < H)
    if K > 0:
        mask = (head < H) & (number < K)[:, None]
        tl.store(mean_basis + row * K + number[:, None], mean / total, mask=mask)


@triton.jit
def backward_target(
    q, k, v, a, distance, source, row_ptr, bias, y, lse, grad_y, grad_lse, projected,
    p, delta, grad_q, grad_a, grad_distance,
    DISTANCE_GRAD: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BIAS_HEADS: tl.constexpr,
    SPACING: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write grad_q, grad_a, and p, delta [E, H] of every neighbour, for ``backward_source``.

    grad_distance [E, groups of heads] is to be summed over groups. The products are computed as
    G B^T, with few rows, which takes fewer registers than B G^T.
    """
    atom = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, DIM)
    number = tl.arange(0, COUNT)
    row = atom * H + head
    own = row[:, None] * D + column
    own_mask = (head < H)[:, None] & (column < D)

    query = tl.load(q + own, mask=own_mask, other=0).to(ACC)
    decay = tl.load(a + row, mask=head < H, other=0).to(ACC)
    level = tl.load(lse + row, mask=head < H, other=0).to(ACC)
    received = tl.load(grad_y + own, mask=own_mask, other=0).to(ACC)
    mean = tl.load(y + own, mask=own_mask, other=0).to(ACC)
    offset = tl.load(grad_lse + row, mask=head < H, other=0).to(ACC) - tl.sum(received * mean, 1)
    if K > 0:
        mask = (head < H)[:, None] & (number < K)
        g = tl.load(projected + row[:, None] * K + number, mask=mask, other=0).to(FACTOR)
    sum_q = tl.zeros([HEADS, DIM], ACC)
    sum_a = tl.zeros([HEADS], ACC)
    end = tl.load(row_ptr + atom + 1)
    for start in range(tl.load(row_ptr + atom), end, BLOCK):
        edge = start + tl.arange(0, BLOCK).to(tl.int64)
        present = edge < end
        j = tl.load(source + edge, mask=present, other=0)
        d = tl.load(distance + edge, mask=present, other=0).to(ACC)
        image = _gather(v, j, head, present, H, D, DIM).to(ACC)
        t = tl.sum(received * image, 2) + offset
        if K > 0:
            basis, x = _radial(d[None, :], number[:, None], SPACING, WIDTH)
            t += tl.trans(tl.dot(g, basis.to(FACTOR), input_precision=PRECISION, out_dtype=ACC))
            if DISTANCE_GRAD:  # G.b'(d) = slope / width
                slope = tl.dot(g, (basis * x).to(FACTOR), input_precision=PRECISION, out_dtype=ACC)
        key = _gather(k, j, head, present, H, D, DIM).to(ACC)
        logit = _logits(query, decay, key, d, bias, edge, head, present, H, D, BIAS_HEADS)
        weight = tl.exp(logit - level)
        change = weight * t
        sum_q += tl.sum(change[:, :, None] * key, 0)
        sum_a += tl.sum(change * (d * d)[:, None], 0)
        there = edge[:, None] * H + head
        there_mask = present[:, None] & (head < H)
        tl.store(p + there, weight, mask=there_mask)
        tl.store(delta + there, change, mask=there_mask)
        if DISTANCE_GRAD:
            along = 2 * decay * d[:, None] * change
            if K > 0:
                along += weight * tl.trans(slope) * (1 / WIDTH)
            part = edge * tl.num_programs(1) + tl.program_id(1)
            tl.store(grad_distance + part, tl.sum(along, 1), mask=present)

    tl.store(grad_q + own, sum_q * (D**-0.5), mask=own_mask)
    tl.store(grad_a + row, sum_a, mask=head < H)


@triton.jit
def backward_source(
    q, grad_y, target, by_source, source_ptr, p, delta, grad_k, grad_v,
    H: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Write grad_k and grad_v of an atom, from the edges ``by_source`` [E] whose source it is."""
    atom = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, DIM)
    sum_k = tl.zeros([HEADS, DIM], ACC)
    sum_v = tl.zeros([HEADS, DIM], ACC)
    end = tl.load(source_ptr + atom + 1)
    for start in range(tl.load(source_ptr + atom), end, BLOCK):
        index = start + tl.arange(0, BLOCK).to(tl.int64)
        present = index < end
        edge = tl.load(by_source + index, mask=present, other=0)
        i = tl.load(target + edge, mask=present, other=0)
        there = edge[:, None] * H + head
        there_mask = present[:, None] & (head < H)
        change = tl.load(delta + there, mask=there_mask, other=0)
        weight = tl.load(p + there, mask=there_mask, other=0)
        query = _gather(q, i, head, present, H, D, DIM).to(ACC)
        sum_k += tl.sum(change[:, :, None] * query, 0)
        received = _gather(grad_y, i, head, present, H, D, DIM).to(ACC)
        sum_v += tl.sum(weight[:, :, None] * received, 0)

    own = (atom * H + head)[:, None] * D + column
    own_mask = (head < H)[:, None] & (column < D)
    tl.store(grad_k + own, sum_k * (D**-0.5), mask=own_mask)
    tl.store(grad_v + own, sum_v, mask=own_mask)
