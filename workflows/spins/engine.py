"""Variational Monte Carlo around NetKet: sampling, local energies, natural gradient, safety.

Usable without Lightning: ``VMCEngine(system, model, settings).step(100)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import netket.jax as nkjax
import numpy as np
from flax import serialization
from jax.flatten_util import ravel_pytree
from netket.vqs import MCState

from matattn.errors import ConfigError, TrainingError
from matattn.spins import PAULI, SpinSystem
from matattn.workflows.spins.exchange import exchange, local_energies, swapped
from matattn.workflows.spins.natural_gradient import natural_gradient

Array = Any  # jax.Array, or a tracer
MOST_CONFIGURATIONS = 5_000  # of exact gradients
_MEMORY = 20  # steps over which the energy's trend is averaged
_DIVERGED = 0.1  # energy per site (S.S) above the trend that no healthy run shows
_KEEP_EVERY = 10  # steps between states that a rollback can return to
_MOST_ROLLBACKS = 6


@dataclass(frozen=True)
class Settings:
    """How to sample and how to step.

    Args:
        steps: of the whole run; schedules end there.
        samples: configurations per step.
        chains: Markov chains; must divide ``samples``.
        blur: share of the samples that get one random exchange more (see ``VMCEngine``), 0 to 1.
        sampling: "metropolis", or "exact": all configurations, weighted with |psi|^2.
        chunk_size: configurations that the network sees at once.
        lr: learning rate, reached after ``warmup`` steps; then a cosine to 0.
        warmup: steps of linear growth of the rate.
        diag_shift: of the quantum geometric tensor, at the beginning and from 60 % of the steps on.
        momentum: of SPRING.
        seed: of weights, chains and exchanges.

    Raises ConfigError for what no run can have.
    """

    steps: int
    samples: int
    chains: int
    blur: float
    sampling: str
    chunk_size: int
    lr: float
    warmup: int
    diag_shift: tuple[float, float]
    momentum: float
    seed: int

    def __post_init__(self) -> None:
        if self.samples % self.chains:
            raise ConfigError(
                f"task.samples={self.samples} is no multiple of task.chains={self.chains}: every "
                "chain gives as many samples"
            )
        if self.sampling not in ("metropolis", "exact"):
            raise ConfigError(f"task.sampling={self.sampling!r}: expected metropolis or exact")
        devices = jax.device_count()
        if self.chains % devices:
            raise ConfigError(
                f"task.chains={self.chains} cannot be shared by the {devices} devices that jax sees"
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        passed = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (1 + math.cos(math.pi * min(1.0, passed))) / 2

    def shift(self, step: int) -> float:
        """Diagonal shift of a step."""
        first, last = self.diag_shift
        return first * (last / first) ** min(1.0, step / (0.6 * self.steps))


@dataclass(frozen=True)
class StepStats:
    """What one step saw; energies per site in S.S, before the update."""

    energy: float
    error: float
    variance: float  # of the energy per site
    v_score: float
    effective_samples: float
    acceptance: float


class VMCEngine:
    r"""Ground-state search of one spin system with one network.

    Blurred sampling (arXiv 2603.18148): a share a of the samples from :math:`|\psi|^2` gets one
    exchange on a random bond. Their density is

    .. math::
        q(\sigma) = (1 - a) |\psi(\sigma)|^2 + \frac{a}{K} \sum_b |\psi(\sigma_b)|^2 ,

    known from the ratios that the local energy needs anyway, and the weights |psi|^2 / q never
    exceed 1 / (1 - a). So configurations next to likely ones are seen even where psi is far too
    small there, which plain sampling never corrects.

    A step whose energy is no number, impossible, or far above the trend is undone: the engine
    returns to a state of at least ``_KEEP_EVERY`` steps before and halves its rate.

    Raises ConfigError, and TrainingError from ``step`` when rollbacks do not help.
    """

    def __init__(self, system: SpinSystem, model: nn.Module, settings: Settings) -> None:
        self.system, self.model, self.settings = system, model, settings
        if settings.sampling == "exact" and system.hilbert.n_states > MOST_CONFIGURATIONS:
            raise ConfigError(
                f"task.sampling=exact: {system.name} has {system.hilbert.n_states:,} "
                f"configurations; at most {MOST_CONFIGURATIONS:,}"
            )
        self.state = MCState(
            system.sampler(settings.chains),
            model,
            n_samples=settings.samples,
            n_discard_per_chain=0,
            chunk_size=settings.chunk_size,
            seed=settings.seed,
            sampler_seed=settings.seed + 1,
        )
        flat, self._unravel = ravel_pytree(self.state.parameters)
        self._previous = np.zeros(flat.size)
        self._compile()
        self.step_count = 0
        self.rollbacks = 0
        self._trend: list[float] = []
        self._kept: list[dict[str, Any]] = []
        self.last: StepStats | None = None

    @property
    def variables(self) -> Any:
        """The network's flax variables."""
        return self.state.variables

    def step(self, count: int = 1) -> StepStats:
        """Take ``count`` steps; what the last one saw."""
        for _ in range(count):
            stats = self._one_step()
            while not self._healthy(stats):
                self._roll_back(stats)
                stats = self._one_step()
            self._trend = [*self._trend, stats.energy][-_MEMORY:]
            self.step_count += 1
            if self.step_count % _KEEP_EVERY == 0:
                self._kept = [*self._kept, self._own_state()][-2:]
            self.last = stats
        assert self.last is not None
        return self.last

    def _one_step(self) -> StepStats:
        spins, acceptance = self._sample()
        settings = self.settings
        rate = settings.rate(self.step_count) / 2**self.rollbacks
        shift = settings.shift(self.step_count)
        parameters = self.state.parameters
        found, weights, energies = self._measure(parameters, spins)
        self.state.parameters, self._previous = self._update(
            parameters, self._differentiate(parameters, spins), energies, weights, self._previous,
            rate, shift,
        )  # fmt: skip
        energy, variance, error, effective = map(float, found)
        v_score = self.system.v_score(energy, variance)
        return StepStats(energy, error, variance, v_score, effective, acceptance)

    def _sample(self) -> tuple[Array, float]:
        if self.settings.sampling == "exact":
            return self.system.hilbert.all_states(), 1.0
        self.state.reset()
        spins = jax.lax.collapse(self.state.samples, 0, 2)
        if self.settings.blur:
            key = jax.random.fold_in(jax.random.key(self.settings.seed), self.step_count)
            spins = _blurred(spins, self.system.bonds[0], self.settings.blur, key)
        acceptance = self.state.sampler_state.acceptance
        return spins, float(acceptance) if acceptance is not None else 1.0

    def _compile(self) -> None:
        """Compile the parts of a step. In one piece, XLA made them four times slower on a CPU."""
        settings, system, model = self.settings, self.system, self.model
        ratios_of = exchange(model, system.bonds[0], settings.chunk_size)

        def measure(parameters: Any, spins: Array) -> tuple[Any, Array, Array]:
            log_psi, ratios = ratios_of({"params": parameters}, spins)
            energies = local_energies(system, spins, ratios)
            if settings.sampling == "exact":
                weights = jax.nn.softmax(2 * log_psi.real)
            else:
                blur = settings.blur
                weights = 1 / (1 - blur + blur * (jnp.abs(ratios) ** 2).mean(-1))
                weights = weights / weights.sum()
            mean = (weights * energies).sum().real
            deviation = jnp.abs(energies - mean) ** 2
            error = jnp.sqrt((weights**2 * deviation).sum())
            found = (mean, (weights * deviation).sum(), error, 1 / (weights**2).sum())
            return found, weights, energies

        def differentiate(parameters: Any, spins: Array) -> Array:
            return nkjax.jacobian(
                model.apply, parameters, spins, mode="complex", dense=True,
                chunk_size=settings.chunk_size,
            )  # fmt: skip

        def update(
            parameters: Any, derivatives: Array, energies: Array, weights: Array, previous: Array,
            rate: float, shift: float,
        ) -> tuple[Any, Array]:  # fmt: skip
            # NetKet's energies are PAULI times ours per site, and N times as many.
            direction = natural_gradient(
                derivatives, PAULI * system.sites * energies, weights, shift, settings.momentum,
                previous,
            )  # fmt: skip
            change = self._unravel(rate * direction)
            return jax.tree.map(jnp.subtract, parameters, change), direction

        self._measure, self._differentiate = jax.jit(measure), jax.jit(differentiate)
        self._update = jax.jit(update)

    def _healthy(self, stats: StepStats) -> bool:
        energy, low = stats.energy, self.system.energy_bounds[0]
        if not math.isfinite(energy) or not math.isfinite(stats.variance):
            return False
        if energy < low - 3 * stats.error or not np.isfinite(self._previous).all():
            return False
        allowed = _DIVERGED + 3 * stats.error
        return len(self._trend) < _MEMORY or energy < float(np.mean(self._trend)) + allowed

    def _roll_back(self, stats: StepStats) -> None:
        self.rollbacks += 1
        if self.rollbacks > _MOST_ROLLBACKS or not self._kept:
            raise TrainingError(
                f"the energy is {stats.energy:.4g} per site at step {self.step_count}"
                + (f", after {_MOST_ROLLBACKS} rollbacks" if self._kept else "")
                + "; try a lower optimizer.lr, a larger optimizer.diag_shift or more task.samples"
            )
        self._kept = self._kept[:1]
        self._load_own({**self._kept[0], "rollbacks": self.rollbacks})

    def _own_state(self) -> dict[str, Any]:
        return {
            "state": serialization.to_state_dict(self.state),
            "previous": np.asarray(self._previous),
            "step_count": self.step_count,
            "rollbacks": self.rollbacks,
            "trend": list(self._trend),
        }

    def _load_own(self, own: dict[str, Any]) -> None:
        self.state = serialization.from_state_dict(self.state, own["state"])
        self._previous = np.asarray(own["previous"])
        self.step_count, self.rollbacks = int(own["step_count"]), int(own["rollbacks"])
        self._trend = [float(energy) for energy in own["trend"]]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on, as plain values and arrays."""
        return {"own": self._own_state(), "kept": {str(k): s for k, s in enumerate(self._kept)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as if never interrupted."""
        self._load_own(state["own"])
        self._kept = [state["kept"][key] for key in sorted(state["kept"])]

    def to_bytes(self) -> bytes:
        """``state_dict`` as msgpack."""
        return serialization.msgpack_serialize(jax.tree.map(_plain, self.state_dict()))

    def from_bytes(self, content: bytes) -> None:
        """Load what ``to_bytes`` gave."""
        self.load_state_dict(serialization.msgpack_restore(content))


def _plain(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


def _blurred(spins: Array, pairs: np.ndarray, share: float, key: Array) -> Array:
    """``spins`` [M, N] with two of a random pair exchanged in a share of the rows."""
    choose, pick = jax.random.split(key)
    chosen = jax.random.bernoulli(choose, share, (len(spins), 1))
    picked = jnp.asarray(pairs)[jax.random.randint(pick, (len(spins),), 0, len(pairs))]
    return jnp.where(chosen, swapped(spins, picked), spins)
