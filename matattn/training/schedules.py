"""Learning-rate schedules: the factor of the base rate at every optimiser step."""

from __future__ import annotations

import math
from typing import Protocol


class Schedule(Protocol):
    """A function that returns the factor of the base rate at a step."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at ``step`` of ``total_steps``."""


class InverseSquareRoot:
    r""":math:`\sqrt{T / (T + t)}` at step t, no warm-up: Crystalformer's published schedule."""

    def __init__(self, timescale: int = 4000) -> None:
        if timescale < 1:
            raise ValueError(f"timescale={timescale}: expected at least 1 step")
        self.timescale = timescale

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at this step."""
        return math.sqrt(self.timescale / (self.timescale + step))


class OneCycle:
    """A linear warm-up over a fraction of all steps, then a cosine down to zero."""

    def __init__(self, warmup: float = 0.1) -> None:
        self.warmup = _fraction(warmup)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at this step."""
        warm = max(1, round(self.warmup * total_steps))
        if step < warm:
            return (step + 1) / warm
        progress = min(1.0, (step - warm) / max(1, total_steps - warm))
        return 0.5 * (1 + math.cos(math.pi * progress))


class OneCycleWithMomentum:
    r"""Cosine warm-up and decay, while Adam's :math:`\beta_1` falls from 0.95 to 0.85 and returns.

    The schedule of PyTorch's ``OneCycleLR``, with which FLARE was trained: the rate begins at 1 /
    ``div_factor`` of its peak and ends at 1 / (``div_factor`` * ``final_div_factor``).
    """

    def __init__(
        self, warmup: float = 0.1, div_factor: float = 1e4, final_div_factor: float = 1e4
    ) -> None:
        if not (div_factor > 0 and final_div_factor > 0):
            raise ValueError(
                "div_factor and final_div_factor must be above 0; got "
                f"{div_factor}, {final_div_factor}"
            )
        self.warmup = _fraction(warmup)
        self.begin, self.end = 1 / div_factor, 1 / (div_factor * final_div_factor)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at this step."""
        return self._between(step, total_steps, self.begin, 1.0, self.end)

    def beta1(self, step: int, total_steps: int) -> float:
        """Return Adam's first coefficient at this step."""
        return self._between(step, total_steps, 0.95, 0.85, 0.95)

    def _between(self, step: int, total: int, begin: float, peak: float, end: float) -> float:
        top = self.warmup * total - 1  # the peak is reached at this step, the end at total - 1
        if step < top:
            start, stop, part = begin, peak, step / top
        else:
            start, stop, part = peak, end, (step - top) / max(1e-9, total - 1 - top)
        return stop + (start - stop) * (1 + math.cos(math.pi * min(1.0, part))) / 2


def _fraction(warmup: float) -> float:
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup={warmup}: expected a fraction of all steps, 0 to 1")
    return warmup
