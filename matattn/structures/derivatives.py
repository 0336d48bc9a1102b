r"""Forces and stress of an energy that a network predicts.

With a homogeneous strain :math:`\varepsilon`, positions and cell become :math:`r (1 + \varepsilon)`
and :math:`L (1 + \varepsilon)`, and

.. math::
    F_i = -\frac{\partial E}{\partial r_i}, \qquad
    \sigma_{ab} = \frac{1}{V} \frac{\partial E}{\partial \varepsilon_{ab}}

(Nielsen and Martin, Phys. Rev. B 32, 3780, 1985). Positive stress pulls the crystal together; the
pressure is minus a third of its trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from matattn.structures.batch import CrystalBatch


@dataclass(frozen=True)
class EnergyDerivatives:
    """Energy of B crystals with N atoms in all, and its first derivatives."""

    energy: Float[Tensor, " crystals"]  # eV per cell
    forces: Float[Tensor, "atoms 3"]  # eV/Å
    stress: Float[Tensor, "crystals 3 3"]  # eV/Å^3


def energy_forces_stress(
    energy: Callable[[CrystalBatch], Tensor], batch: CrystalBatch, create_graph: bool = False
) -> EnergyDerivatives:
    """Compute energy, forces and stress from ``energy(batch)``, the energy of every cell [B], eV.

    For a saved model that is ``model.energy``; a network's raw output is normalised and per atom.
    With ``create_graph`` the results can be differentiated again, to train on forces and stress.

    The stress of a molecule is NaN: it has no volume. Images that enter or leave the range of the
    sum make the energy jump by the list's tolerance. Raises ValueError for a batch that is reduced
    by symmetry, where distances do not follow from the positions.
    """
    if batch.distance is not None:
        raise ValueError(
            "forces and stress need a batch of all atoms; make its neighbour list with symmetry=0"
        )
    with torch.inference_mode(False), torch.enable_grad():
        if batch.pos.is_inference():
            batch = _recorded(batch)
        pos = batch.pos.detach().requires_grad_()
        strain = torch.zeros_like(batch.cell).requires_grad_()
        symmetric = (strain + strain.transpose(1, 2)) / 2
        moved = pos + torch.einsum("na,nab->nb", pos, symmetric[batch.batch])
        strained = replace(batch, pos=moved, cell=batch.cell + batch.cell @ symmetric)
        values = energy(strained)
        if values.shape != (batch.num_graphs,):
            raise ValueError(
                f"energy(batch) has shape {tuple(values.shape)}, expected one value for each of "
                f"{batch.num_graphs} crystals"
            )
        by_pos, by_strain = torch.autograd.grad(
            values.sum(), (pos, strain), create_graph=create_graph
        )
    volume = torch.linalg.det(batch.cell).abs()
    volume = torch.where(volume > 0, volume, torch.nan)
    return EnergyDerivatives(
        energy=values if create_graph else values.detach(),
        forces=-by_pos,
        stress=by_strain / volume[:, None, None],
    )


def _recorded(batch: CrystalBatch) -> CrystalBatch:
    """Return a copy that can be differentiated of a batch that was made in inference mode."""
    copies: dict[str, Any] = {}
    for field in fields(batch):
        tensor = getattr(batch, field.name)
        copies[field.name] = tensor if tensor is None else tensor.clone()
    return CrystalBatch(**copies)


def loss_gradient(
    energy: Callable[[CrystalBatch], Tensor],
    batch: CrystalBatch,
    by_energy: Float[Tensor, " crystals"],
    by_forces: Float[Tensor, "atoms 3"],
    by_stress: Float[Tensor, "crystals 3 3"],
    shift: float = 0.01,
) -> Tensor:
    r"""Return a number whose gradient by the parameters is that of a loss on E, F and stress.

    With the slopes :math:`g = \partial L / \partial E`, :math:`\lambda = \partial L / \partial F`
    and :math:`\kappa = \partial L / \partial \sigma` of a loss at what the energy gives now,

    .. math::
        \frac{dL}{d\theta} = \sum_\pm \left( \frac g 2 \pm \frac{1}{2 s} \right)
            \frac{dE}{d\theta} (r \mp s \lambda, \ \pm s \kappa / V) + O(s^2)

    with a strain as the second argument: two ordinary gradients of the energy at displaced
    geometries, with the neighbours of ``batch``, in place of second derivatives. s is chosen for
    every crystal so that no atom moves by more than ``shift`` Å against its neighbours within some
    10 Å. The energy must be smooth: kinks, such as ReLU's, spoil the difference.
    """
    volume = torch.linalg.det(batch.cell).abs().clamp(min=1e-30)[:, None, None]
    strain = (by_stress + by_stress.transpose(1, 2)) / (2 * volume)
    largest = by_forces.new_zeros(batch.num_graphs).scatter_reduce(
        0, batch.batch, by_forces.norm(dim=1), "amax"
    )
    largest = largest + 10 * strain.flatten(1).norm(dim=1)
    step = torch.where(largest > 0, shift / largest, 1.0)
    total: Tensor = by_energy.new_zeros(())
    for sign in (1, -1):
        deformed = (sign * step)[:, None, None] * strain
        pos = batch.pos - sign * step[batch.batch, None] * by_forces
        pos = pos + torch.einsum("na,nab->nb", pos, deformed[batch.batch])
        moved = replace(batch, pos=pos, cell=batch.cell + batch.cell @ deformed)
        weight = by_energy / 2 + sign / (2 * step)
        total = total + (weight * energy(moved)).sum()
    return total
