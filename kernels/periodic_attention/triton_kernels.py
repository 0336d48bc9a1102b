"""The Triton kernels of periodic attention; ``triton_ops.py`` launches them.

Formulas and names follow README.md. Arrays are contiguous: q, k, v, y [N, H, D]; a, lse [N, H];
mean_basis (c) and projected (G = W^T grad_y) [N, H, K]; distance, source [E]; bias [E, BIAS_HEADS],
none if that is 0. Those of the moments, if C > 0: u [N, H, C], u_weight (U) [H, C, K], table (f)
[E, F], m (M) [N, H, C, F]. A program owns one atom and HEADS heads, and walks over its neighbours
in blocks of BLOCK. Every number has one writer and every sum one order.

HEADS, DIM, COUNT, CHANNELS and FUNCTIONS are H, D, K, C and F padded to powers of two; many heads
are split into groups of HEADS. Heads and channels of the moments are one axis of HEADS * CHANNELS
"lanes". Everything is computed in ACC, but for the factors of the products with the radial
functions and with the table, which are rounded to FACTOR; PRECISION says how tensor cores multiply
float32.
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
def _lanes(HEADS: tl.constexpr, CHANNELS: tl.constexpr, H: tl.constexpr, C: tl.constexpr):
    """Return head * C + channel of every lane, and whether there is such a one."""
    lane = tl.arange(0, HEADS * CHANNELS)
    head = tl.program_id(1) * HEADS + lane // CHANNELS
    channel = lane % CHANNELS
    return head * C + channel, (head < H) & (channel < C)


@triton.jit
def _by_lane(p, BLOCK: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr):
    """Repeat numbers [BLOCK, HEADS] for the channels: [BLOCK, lanes]."""
    repeated = tl.broadcast_to(p[:, :, None], [BLOCK, HEADS, CHANNELS])
    return tl.reshape(repeated, [BLOCK, HEADS * CHANNELS])


@triton.jit
def _values(
    u, j, present, lane, in_lane, projection, basis,
    H: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute u_j + U b of a block of neighbours [BLOCK, lanes]; projection is U [lanes, COUNT]."""
    mask = present[:, None] & in_lane
    value = tl.load(u + (j * (H * C))[:, None] + lane, mask=mask, other=0).to(ACC)
    if K > 0:
        radial = tl.dot(projection, basis, input_precision=PRECISION, out_dtype=ACC)
        value += tl.trans(radial)
    return value


@triton.jit
def forward(
    q, k, v, a, distance, source, row_ptr, bias, u, u_weight, table,
    attended, lse, mean_basis, m,
    H: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BIAS_HEADS: tl.constexpr,
    C: tl.constexpr, F: tl.constexpr, CHANNELS: tl.constexpr, FUNCTIONS: tl.constexpr,
    SPACING: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write attended = sum P v [N, H, D], mean_basis = sum P b, lse and m by an online softmax.

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
    if C > 0:
        lane, in_lane = _lanes(HEADS, CHANNELS, H, C)
        function = tl.arange(0, FUNCTIONS)
        moments = tl.zeros([FUNCTIONS, HEADS * CHANNELS], ACC)
        mask = in_lane[:, None] & (number < K)
        projection = tl.load(u_weight + lane[:, None] * K + number, mask=mask, other=0).to(FACTOR)
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
        else:
            basis = tl.zeros([COUNT, BLOCK], ACC)
        if C > 0:
            value = _values(u, j, present, lane, in_lane, projection, basis.to(FACTOR), H, C, K,
                            ACC, PRECISION)  # fmt: skip
            terms = _by_lane(p, BLOCK, HEADS, CHANNELS) * value
            in_table = present[:, None] & (function < F)
            f = tl.load(table + edge[:, None] * F + function, mask=in_table, other=0)
            moments = tl.dot(
                tl.trans(f.to(FACTOR)), terms.to(FACTOR),
                moments * _by_lane(shrink[None, :], 1, HEADS, CHANNELS),
                input_precision=PRECISION, out_dtype=ACC,
            )  # fmt: skip

    tl.store(attended + own, sum_v / total[:, None], mask=own_mask)
    tl.store(lse + row, largest + tl.log(total), mask=head < H)
    if K > 0:
        mask = (head < H) & (number < K)[:, None]
        tl.store(mean_basis + row * K + number[:, None], mean / total, mask=mask)
    if C > 0:
        place = (atom * (H * C) + lane) * F + function[:, None]
        normal = _by_lane((1 / total)[None, :], 1, HEADS, CHANNELS)
        tl.store(m + place, moments * normal, mask=in_lane & (function < F)[:, None])


@triton.jit
def backward_target(
    q, k, v, a, distance, source, row_ptr, bias, u, u_weight, table, y, lse, m,
    grad_y, grad_lse, grad_m, projected,
    p, delta, sent, grad_q, grad_a, grad_u_weight, grad_distance, grad_table,
    DISTANCE_GRAD: tl.constexpr, TABLE_GRAD: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BIAS_HEADS: tl.constexpr,
    C: tl.constexpr, F: tl.constexpr, CHANNELS: tl.constexpr, FUNCTIONS: tl.constexpr,
    SPACING: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write grad_q, grad_a, and p, delta [E, H] of every neighbour, for ``backward_source``.

    So is sent [E, H, C], the gradient of u_j. grad_u_weight [N, H, C, K] is to be summed over the
    atoms, grad_distance [E, groups of heads] and grad_table [E, F, groups] over the groups. The
    products are computed as G B^T, with few rows, which takes fewer registers than B G^T.
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
    if C > 0:
        lane, in_lane = _lanes(HEADS, CHANNELS, H, C)
        function = tl.arange(0, FUNCTIONS)
        mask = in_lane[:, None] & (number < K)
        projection = tl.load(u_weight + lane[:, None] * K + number, mask=mask, other=0).to(FACTOR)
        place = (atom * (H * C) + lane) * F + function[:, None]
        mask = in_lane & (function < F)[:, None]
        incoming = tl.load(grad_m + place, mask=mask, other=0).to(ACC)  # [FUNCTIONS, lanes]
        known = tl.sum(incoming * tl.load(m + place, mask=mask, other=0).to(ACC), 0)
        offset -= tl.sum(tl.reshape(known, [HEADS, CHANNELS]), 1)
        sum_u = tl.zeros([HEADS * CHANNELS, COUNT], ACC)
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
        else:
            basis = tl.zeros([COUNT, BLOCK], ACC)
        if C > 0:
            value = _values(u, j, present, lane, in_lane, projection, basis.to(FACTOR), H, C, K,
                            ACC, PRECISION)  # fmt: skip
            in_table = present[:, None] & (function < F)
            f = tl.load(table + edge[:, None] * F + function, mask=in_table, other=0)
            by_value = tl.dot(
                f.to(FACTOR), incoming.to(FACTOR), input_precision=PRECISION, out_dtype=ACC
            )
            t += tl.sum(tl.reshape(by_value * value, [BLOCK, HEADS, CHANNELS]), 2)
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
        if C > 0:
            weights = _by_lane(weight, BLOCK, HEADS, CHANNELS)
            received_u = weights * by_value
            sending = present[:, None] & in_lane
            tl.store(sent + edge[:, None] * (H * C) + lane, received_u, mask=sending)
            if K > 0:
                sum_u = tl.dot(
                    tl.trans(received_u).to(FACTOR), tl.trans(basis).to(FACTOR), sum_u,
                    input_precision=PRECISION, out_dtype=ACC,
                )  # fmt: skip
            if TABLE_GRAD:
                turned = tl.dot(
                    (weights * value).to(FACTOR), tl.trans(incoming).to(FACTOR),
                    input_precision=PRECISION, out_dtype=ACC,
                )  # fmt: skip
                part = (edge[:, None] * F + function) * tl.num_programs(1) + tl.program_id(1)
                tl.store(grad_table + part, turned, mask=present[:, None] & (function < F))
        if DISTANCE_GRAD:
            along = 2 * decay * d[:, None] * change
            if K > 0:
                along += weight * tl.trans(slope) * (1 / WIDTH)
                if C > 0:
                    slope_u = tl.dot(
                        projection, (basis * x).to(FACTOR), input_precision=PRECISION,
                        out_dtype=ACC,
                    )  # fmt: skip
                    turned = received_u * tl.trans(slope_u) * (1 / WIDTH)
                    along += tl.sum(tl.reshape(turned, [BLOCK, HEADS, CHANNELS]), 2)
            part = edge * tl.num_programs(1) + tl.program_id(1)
            tl.store(grad_distance + part, tl.sum(along, 1), mask=present)

    tl.store(grad_q + own, sum_q * (D**-0.5), mask=own_mask)
    tl.store(grad_a + row, sum_a, mask=head < H)
    if C > 0 and K > 0:
        place = (atom * (H * C) + lane)[:, None] * K + number
        tl.store(grad_u_weight + place, sum_u, mask=in_lane[:, None] & (number < K))


@triton.jit
def backward_source(
    q, grad_y, target, by_source, source_ptr, p, delta, sent, grad_k, grad_v, grad_u,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Write grad_k, grad_v, grad_u of an atom, from the edges ``by_source`` [E] that it sends."""
    atom = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, DIM)
    sum_k = tl.zeros([HEADS, DIM], ACC)
    sum_v = tl.zeros([HEADS, DIM], ACC)
    if C > 0:
        lane, in_lane = _lanes(HEADS, CHANNELS, H, C)
        sum_u = tl.zeros([HEADS * CHANNELS], ACC)
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
        if C > 0:
            mask = present[:, None] & in_lane
            sum_u += tl.sum(tl.load(sent + edge[:, None] * (H * C) + lane, mask=mask, other=0), 0)

    own = (atom * H + head)[:, None] * D + column
    own_mask = (head < H)[:, None] & (column < D)
    tl.store(grad_k + own, sum_k * (D**-0.5), mask=own_mask)
    tl.store(grad_v + own, sum_v, mask=own_mask)
    if C > 0:
        tl.store(grad_u + atom * (H * C) + lane, sum_u, mask=in_lane)
