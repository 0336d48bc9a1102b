"""Learning-rate schedules: a factor of the base rate for every optimiser step."""

from __future__ import annotations

import math
from typing import Protocol


class Schedule(Protocol):
    def __call__(self, step: int, total_steps: int) -> float: ...


class InverseSquareRoot:
    r""":math:`\sqrt{T / (T + t)}` at step t, no warm-up: Crystalformer's published schedule."""

    def __init__(self, timescale: int = 4000) -> None:
        self.timescale = timescale

    def __call__(self, step: int, total_steps: int) -> float:
        return math.sqrt(self.timescale / (self.timescale + step))


class OneCycle:
    """Linear warm-up over a fraction of all steps, then a cosine down to zero."""

    def __init__(self, warmup: float = 0.1) -> None:
        self.warmup = warmup

    def __call__(self, step: int, total_steps: int) -> float:
        warm = max(1, round(self.warmup * total_steps))
        if step < warm:
            return (step + 1) / warm
        progress = min(1.0, (step - warm) / max(1, total_steps - warm))
        return 0.5 * (1 + math.cos(math.pi * progress))
