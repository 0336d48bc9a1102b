"""Amplitudes, energy and observables of a saved wave function. Imports no Lightning."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from matattn import bundle
from matattn.errors import BundleError, DataError
from matattn.models.factored_attention import TransformerWaveFunction, fits, from_arrays
from matattn.spins import Reference, SpinSystem
from matattn.workflows.spins.observables import LONG_CHAIN, draw, energy, observables
from matattn.workflows.spins.report import plain, scalars

CHUNK_SIZE = 512


@dataclass(frozen=True)
class WaveFunction:
    """An optimised state with its system: ``WaveFunction.load(folder).observe()``."""

    system: SpinSystem
    model: TransformerWaveFunction
    variables: Any
    config: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> WaveFunction:
        """Load the state in ``folder`` to where jax chooses, whatever ``device`` says.

        Raises BundleError.
        """
        _, config, arrays = bundle.load_arrays(folder)
        try:
            model = TransformerWaveFunction(**config["arguments"])
            system = _system(config["system"])
            if not fits(model, arrays):
                raise ValueError("the weights have other shapes")
        except (TypeError, ValueError, KeyError, AttributeError, DataError) as error:
            reason = " ".join(str(error).split())
            raise BundleError(f"{folder}: config.json and weights do not fit: {reason}") from error
        return cls(system, model, from_arrays(arrays), config)

    def log_psi(self, spins: np.ndarray) -> np.ndarray:
        """Return complex log-amplitudes [B] of configurations [B, N] of +1 and -1, row-major."""
        return np.asarray(self.model.apply(self.variables, spins))

    def observe(self, samples: int = 4096, seed: int = 0) -> dict[str, Any]:
        """Return energy and correlations with errors from fresh samples, as in observables.json."""
        state = self.system, self.model, self.variables
        spins = draw(*state, samples, LONG_CHAIN, CHUNK_SIZE, seed)
        energies = {"fresh samples": asdict(energy(*state, spins, CHUNK_SIZE))}
        return plain(self.system, observables(*state, spins, CHUNK_SIZE), energies)


def _system(described: Mapping[str, Any]) -> SpinSystem:
    """Return the system that a bundle describes."""
    reference = described["reference"] and Reference(**described["reference"])
    return SpinSystem(**{**described, "extent": tuple(described["extent"]), "reference": reference})


def observe_folder(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Add a row per observable: its name, value and error; return a line that says from what."""
    begin = time.perf_counter()
    state = WaveFunction.load(folder)
    observed = state.observe()
    for name, (value, error) in scalars(observed):
        row = {"observable": name, "value": value, "error": "" if error is None else error}
        rows.append({**row, "system": state.system.name, "status": "ok", "message": ""})
    return (
        f"{state.system.name}: {observed['samples']} configurations for correlations, "
        f"{observed['energies']['fresh samples']['samples']} for the energy, in "
        f"{time.perf_counter() - begin:.1f} s; S.S for spins 1/2, J1 = 1"
    )
