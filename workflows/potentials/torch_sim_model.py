"""A potential as a model of TorchSim: relaxation and dynamics of many systems in one batch.

Cohen et al., arXiv 2508.06628 (2025).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.predict import Potential, is_periodic

with warnings.catch_warnings():  # of its own imports
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_sim
    from torch_sim.models.interface import ModelInterface


class TorchSimModel(ModelInterface):
    """TorchSim's interface: energy [B] eV, forces [N, 3] eV/Å, stress [B, 3, 3] eV/Å^3.

    Systems are periodic in all directions or in none; the elements must be those of the training.
    """

    def __init__(self, potential: Potential, dtype: str = "float64") -> None:
        super().__init__()
        self.potential = potential.in_precision(dtype)
        self._device, self._dtype = potential.device, self.potential.dtype
        self._compute_stress = self._compute_forces = True

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Compute the properties of all systems; raises StructureError for unknown elements."""
        if not isinstance(state, torch_sim.SimState):
            state = torch_sim.SimState(**state)
        periodic = is_periodic(torch.as_tensor(state.pbc).cpu(), "systems", "pbc")
        cells = state.row_vector_cell.cpu().numpy()
        sizes = torch.bincount(state.system_idx, minlength=len(cells)).cpu().tolist()
        ends = np.cumsum(sizes)[:-1]
        numbers = np.split(state.atomic_numbers.cpu().numpy(), ends)
        positions = np.split(state.positions.detach().cpu().numpy(), ends)
        systems = []
        for number, (z, pos, cell) in enumerate(zip(numbers, positions, cells, strict=True)):
            self.potential.check(z, f"system {number + 1}")
            systems.append({"z": z, "pos": pos, "cell": cell if periodic else 0 * cell})
        found = energy_forces_stress(self.potential.energy, self.potential.batch(systems))
        return {
            "energy": found.energy.to(self.dtype),
            "forces": found.forces,
            "stress": torch.nan_to_num(found.stress),  # a molecule has none
        }
