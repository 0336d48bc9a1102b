r"""Reciprocal-space heads: attention between atoms by periodic Gaussians of wave vectors.

Taniai et al., "Crystalformer", ICLR 2024 (arXiv 2403.11686), "dual space" variant. With the
learned width :math:`\bar\sigma_i` of atom i and a head, wave vectors :math:`\omega_m` of the cell
(:math:`\omega_m \cdot l_t = 2 \pi m_t`) and its volume V,

.. math::
    \alpha_{ij} = \log \Big[ \frac{(2 \pi \bar\sigma_i^2)^{3/2}}{V} \sum_{m \in \mathbb{Z}^3}
        e^{-\bar\sigma_i^2 |\omega_m|^2 / 2} \cos(\omega_m \cdot (p_j - p_i)) \Big]
      = \log \sum_{n \in \mathbb{Z}^3} e^{-|p_j + n L - p_i|^2 / 2 \bar\sigma_i^2}

.. math::
    y_i = \sum_j \mathrm{softmax}_j (q_i \cdot k_j / \sqrt{D} + \alpha_{ij})\, v_j

``BoxSums`` is the published truncation, ``LatticeSums`` the converged sum; README.md derives both.
Autograd differentiates them by the widths, positions and cells, to any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

SUMS = ("published", "converged")


def integer_box(half_widths: Iterable[float]) -> Tensor:
    """Return all integer vectors with |n_t| <= half_widths[t], in lexicographic order: [M, T]."""
    ranges = (range(-int(half), int(half) + 1) for half in half_widths)
    return torch.tensor(list(product(*ranges)))


def half_box(half_widths: Iterable[float]) -> Tensor:
    """Return one of each pair (m, -m) of ``integer_box``; the first is 0."""
    box = integer_box(half_widths)
    return box[len(box) // 2 :]


class BoxSums:
    r"""The published sum over the wave vectors |m_t| <= 2, for G crystals of n atoms each.

    The sum is clamped at 1e-6 before its logarithm, which makes its gradient zero there. It is far
    from converged unless the lattice vectors are short, and depends on the choice of the unit cell.
    V is the absolute value of the determinant (the published code fails in left-handed cells).

    pos [G, n, 3] and cell [G, 3, 3] in Å.
    """

    HALF_WIDTH, SMALLEST = 2, 1e-6

    def __init__(self, pos: Tensor, cell: Tensor) -> None:
        m = half_box([self.HALF_WIDTH] * 3).to(pos)
        inverse = torch.linalg.inv(cell)
        frac = pos @ inverse
        phase = 2 * math.pi * (frac - frac.detach().round()) @ m.T
        # cos(x_j - x_i) = cos x_i cos x_j + sin x_i sin x_j; [G, n, 2 M]
        self.factors = torch.cat([phase.cos(), phase.sin()], -1)
        self.squared = (2 * math.pi * m @ inverse.mT).square().sum(-1)  # |omega_m|^2 [G, M]
        self.copies = m.new_tensor([1.0] + [2.0] * (len(m) - 1))  # m and -m
        self.log_volume = torch.linalg.det(cell).abs().log()

    def __call__(self, variance: Tensor) -> Tensor:
        r"""Compute :math:`\alpha_{ij}` [G, n, H, n (j)] of :math:`\bar\sigma_i^2` [G, n, H] Å^2."""
        weights = self.copies * torch.exp(-0.5 * variance[..., None] * self.squared[:, None, None])
        query = torch.cat([weights, weights], -1) * self.factors[:, :, None]
        total = query.flatten(1, 2) @ self.factors.mT
        total = total.unflatten(1, variance.shape[1:]).clamp_min(self.SMALLEST)
        scale = 1.5 * (2 * math.pi * variance).log() - self.log_volume[:, None, None]
        return total.log() + scale[..., None]


@dataclass(frozen=True)
class MixedTerms:
    """Terms of ``LatticeSums`` when the first r lattice vectors are summed by wave vectors.

    Every pair has its own N images n of the other lattice vectors, in the order of their distance h
    from the span of the first r. The latter have M wave vectors, one of each pair (m, -m).
    """

    least: Tensor  # [n (i), n (j)] Å^2, smallest h^2
    height: Tensor  # [n (i), n (j), N] Å^2, h^2 above the smallest
    excess: Tensor  # [N] Å^2, the smallest height of all pairs
    cosine: Tensor  # [n (i), n (j), N, M], twice where the wave vector stands for m and -m
    squared_wave: Tensor  # [M] 1/Å^2, ascending
    log_volume: Tensor  # of the r vectors' parallelepiped


class LatticeSums:
    r"""The converged periodic Gaussian sums of one crystal, cheap and exact for every width.

    In the reduced basis :math:`b_1, b_2, b_3` (ascending lengths), Poisson summation turns the sum
    over those r lattice vectors that are shorter than :math:`\sqrt{2 \pi} \bar\sigma_i` into one
    over their wave vectors; images along the other lattice vectors are summed directly:

    .. math::
        \sum_n e^{-d_{ijn}^2 / 2 \sigma^2} = \frac{(2 \pi \sigma^2)^{r/2}}{V_r} \sum_{n_{r+1}..n_3}
            e^{-h_{ijn}^2 / 2 \sigma^2} \sum_{m_1..m_r} e^{-\sigma^2 |\omega_m|^2 / 2}
            \cos(\omega_m \cdot (p_j + n L - p_i))

    with the distance h from the span of :math:`b_1..b_r`. Every atom and head has its own r: 3 is
    the reciprocal sum, 0 the real one. The inner sum is at least :math:`e^{-r \pi / 4}` of its
    largest value, so no digits cancel. Terms below a tenth of the rounding error are left out.

    pos [n, 3] and cell [3, 3] in Å. Tables are made when a width first needs them, and kept.
    """

    def __init__(self, pos: Tensor, cell: Tensor) -> None:
        to_reduced = reduction(cell.detach().double().cpu().numpy())
        self.basis = torch.from_numpy(to_reduced).to(pos) @ cell
        delta = pos[None] - pos[:, None]
        images = (delta.detach() @ torch.linalg.inv(self.basis.detach())).round()
        self.delta = delta - images @ self.basis  # [n (i), n (j), 3]
        self.crossover = self.basis.detach().norm(dim=1) / math.sqrt(2 * math.pi)  # Å
        # A Gaussian of width 1 falls below the tolerance at the square root of this.
        self.range = -2 * math.log(0.1 * torch.finfo(pos.dtype).eps)
        self.tables: dict[tuple[int, int], MixedTerms] = {}

    def __call__(self, variance: Tensor) -> Tensor:
        r"""Compute :math:`\alpha_{ij}` [n (i), H, n (j)] of :math:`\bar\sigma_i^2` [n, H] Å^2."""
        waves = (variance.detach().sqrt()[..., None] > self.crossover).sum(-1)  # r of each row
        alpha = variance.new_zeros(*variance.shape, len(variance))
        for r in waves.unique().tolist():
            atom, head = (waves == r).nonzero(as_tuple=True)
            alpha = alpha.index_put((atom, head), self.rows(r, atom, variance[atom, head]))
        return alpha

    def terms(self, r: int, octave: int) -> MixedTerms:
        """Return the terms for widths between the crossovers of r, up to 2^(octave / 2) Å."""
        short, long = self.basis[:r], self.basis[r:]
        dual = torch.linalg.inv(short @ short.T) @ short
        across = torch.eye(3).to(short) - dual.T @ short  # projects out the span of the short ones

        heights, steps = self.delta.detach() @ across.detach(), (long @ across).detach()
        # Beyond this a term is below the tolerance, even at the largest width.
        largest = self.crossover[r:].square().amin() if r < 3 else steps.new_zeros(())
        reach = self.range * largest.clamp_max(2.0**octave)
        radius = (reach + heights.square().sum(-1).amax()).sqrt()
        planes = (torch.linalg.inv(steps @ steps.T) @ steps).norm(dim=1)
        images = integer_box((radius * planes + 0.5).tolist()).to(steps)
        squared, order = (heights[:, :, None] + images @ steps).square().sum(-1).sort()
        excess = (squared - squared[..., :1]).amin((0, 1))
        excess = excess[excess <= reach]
        images = images[order[..., : len(excess)]]  # every pair has its own nearest ones

        limit = self.range / self.crossover[:r].square().amax() if r else steps.new_zeros(())
        lengths = short.detach().norm(dim=1)
        m = half_box((limit.sqrt() * lengths / (2 * math.pi)).tolist()).to(short)
        waves = 2 * math.pi * m @ dual
        squared_wave, order = waves.detach().square().sum(-1).sort()
        waves = waves[order[squared_wave <= limit]]
        copies = torch.where(torch.arange(len(waves)).to(waves) > 0, 2.0, 1.0)  # m and -m

        vectors = self.delta[:, :, None] + images @ long
        height = (vectors @ across).square().sum(-1)
        least = height.detach().amin(-1)
        return MixedTerms(
            least=least,
            height=height - least[..., None],
            excess=excess,
            cosine=copies * (vectors @ waves.T).cos(),
            squared_wave=waves.square().sum(-1),
            log_volume=0.5 * torch.linalg.det(short @ short.T).log(),
        )

    def rows(self, r: int, atom: Tensor, variance: Tensor) -> Tensor:
        """Compute alpha [R, n (j)] of R pairs of an atom i and a variance, which share one r."""
        low, high = (bound.item() for bound in variance.detach().aminmax())
        key = r, math.ceil(math.log2(high)) if r < 3 and math.isfinite(high) else 0
        if key not in self.tables:
            self.tables[key] = self.terms(*key)
        terms = self.tables[key]
        images = int((terms.excess <= self.range * high).sum())
        waves = int((terms.squared_wave.detach() <= self.range / low).sum())
        weights = torch.exp(-0.5 * variance[:, None] * terms.squared_wave[:waves])
        cosine = terms.cosine[:, :, :images, :waves][atom]
        along = torch.einsum("rjnm,rm->rjn", cosine, weights)
        a = -0.5 / variance[:, None]
        decay = torch.exp(a[..., None] * terms.height[:, :, :images][atom])
        scale = 0.5 * r * (2 * math.pi * variance[:, None]).log() - terms.log_volume
        return (decay * along).sum(-1).log() + a * terms.least[atom] + scale


def reduction(cell: np.ndarray) -> np.ndarray:
    """Return the integer matrix U for which ``U @ cell`` is a short basis, shortest row first.

    Lenstra, Lenstra, Lovász, Math. Ann. 261, 515 (1982).
    """
    basis, k = cell.copy(), 1
    while k < 3:
        for t in reversed(range(k)):
            r = np.linalg.qr(basis.T)[1]
            basis[k] -= np.rint(r[t, k] / r[t, t]) * basis[t]
        r = np.linalg.qr(basis.T)[1]
        if r[k, k] ** 2 + r[k - 1, k] ** 2 < 0.99 * r[k - 1, k - 1] ** 2:
            basis[[k - 1, k]] = basis[[k, k - 1]]
            k = max(k - 1, 1)
        else:
            k += 1
    order = np.argsort(np.linalg.norm(basis, axis=1), kind="stable")
    return np.rint(basis[order] @ np.linalg.inv(cell))


@dataclass(frozen=True)
class EqualCrystals:
    """G crystals of n atoms each, and the sums of their pairs."""

    atoms: Tensor  # [G, n] indices in the batch
    alpha: Callable[[Tensor], Tensor]  # variance [G, n, H] Å^2 -> [G, n (i), H, n (j)]


def periodic_sums(pos: Tensor, cell: Tensor, batch: Tensor, sums: str) -> list[EqualCrystals]:
    """Return the geometry that ``reciprocal_attention`` needs, once for all layers.

    pos [N, 3] Å, cell [B, 3, 3] Å, batch [N] ascending; sums is "published" or "converged".
    """
    sizes = torch.bincount(batch, minlength=len(cell))
    starts = sizes.cumsum(0) - sizes
    groups = []
    for size in sizes.unique().tolist():
        crystals = (sizes == size).nonzero()
        atoms = starts[crystals] + torch.arange(size, device=batch.device)
        positions, cells = pos[atoms], cell[crystals[:, 0]]
        if sums == "published":
            groups.append(EqualCrystals(atoms, BoxSums(positions, cells)))
        else:
            groups.append(EqualCrystals(atoms, _each(map(LatticeSums, positions, cells))))
    return groups


def _each(crystals: Iterable[LatticeSums]) -> Callable[[Tensor], Tensor]:
    """Return a function that computes the sums of all crystals, one by one."""
    sums = list(crystals)
    return lambda variance: torch.stack([s(v) for s, v in zip(sums, variance, strict=True)])


def reciprocal_attention(
    q: Tensor, k: Tensor, v: Tensor, variance: Tensor, groups: list[EqualCrystals]
) -> Tensor:
    r"""Compute y [N, H, D] of the reciprocal-space heads.

    q, k, v [N, H, D] of all atoms of a batch (q unscaled), variance :math:`\bar\sigma_i^2` [N, H]
    Å^2, groups from ``periodic_sums``.
    """
    outputs = []
    for group in groups:
        atoms = group.atoms
        logits = torch.einsum("gihd,gjhd->gihj", q[atoms], k[atoms]) / math.sqrt(q.shape[-1])
        attention = (logits + group.alpha(variance[atoms])).softmax(-1)
        outputs.append(torch.einsum("gihj,gjhd->gihd", attention, v[atoms]).flatten(0, 1))
    order = torch.cat([group.atoms.flatten() for group in groups]).argsort()
    return torch.cat(outputs)[order]
