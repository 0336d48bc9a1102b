"""What a screening looks for, such as ``band_gap in 1.1:1.7``, and how probable it is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from matattn.errors import ConfigError
from matattn.text_files import parse_number
from matattn.workflows.structures.predict import Predictor

_EXPECTED = "expected 'TARGET in LOW:HIGH', 'TARGET > LOW', 'TARGET < HIGH' or 'TARGET is true'"
_FORM = re.compile(r"\s*(?P<target>[^\s<>=]+)\s*(?P<word>in\b|is\b|<=?|>=?)\s*(?P<rest>.*?)\s*")
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class Criterion:
    """A target and the ends of where it is wanted, in the unit of its model.

    Of a model that classifies, ``truth`` is the wanted answer.
    """

    text: str
    target: str
    low: float = -math.inf
    high: float = math.inf
    truth: bool | None = None

    @classmethod
    def parse(cls, text: str) -> Criterion:
        """Read a criterion as users write it; raises ConfigError, which says what is expected."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError(f"--where {text!r}: {_EXPECTED}")
        target, word, rest = found["target"], found["word"], found["rest"]
        text = " ".join(text.split())
        if word == "is":
            if rest.lower() not in _TRUTH:
                raise ConfigError(f"--where {text!r}: {_EXPECTED}")
            return cls(text, target, truth=_TRUTH[rest.lower()])
        ends = rest.split(":") if word == "in" else [""] * 2
        if len(ends) != 2:
            raise ConfigError(f"--where {text!r}: {_EXPECTED}")
        if word != "in":
            ends["<" in word] = rest
        low, high = (_end(end, text, missing) for end, missing in zip(ends, (-1, 1), strict=True))
        if math.isinf(low) and math.isinf(high):
            raise ConfigError(f"--where {text!r}: {_EXPECTED}")
        if not low < high:
            raise ConfigError(f"--where {text!r}: {low:g} is not below {high:g}; nothing is inside")
        return cls(text, target, low, high)

    def probability(self, predictor: Predictor, features: torch.Tensor) -> np.ndarray:
        """Return the probability [n] of being inside from features [n, F]."""
        column = [target["name"] for target in predictor.targets].index(self.target)
        if self.truth is not None:
            true = predictor.values(features)[:, column]
            return true if self.truth else 1 - true
        return predictor.probability(features, column, self.low, self.high)


def _end(text: str, criterion: str, missing: int) -> float:
    if not text.strip():
        return missing * math.inf
    number = parse_number(text)
    if number is None:
        raise ConfigError(f"--where {criterion!r}: {text!r} is no number; {_EXPECTED}")
    return number


def check(criteria: Sequence[Criterion], predictors: Mapping[str, Predictor]) -> None:
    """Raise ConfigError for a criterion that no model, by its name, can judge."""
    known = {
        target["name"]: predictor
        for predictor in predictors.values()
        for target in predictor.targets
    }
    for number, criterion in enumerate(criteria):
        if criterion.target in {other.target for other in criteria[:number]}:
            raise ConfigError(
                f"--where {criterion.text!r}: {criterion.target} has a criterion already; write "
                f"one, as '{criterion.target} in LOW:HIGH'"
            )
        predictor = known.get(criterion.target)
        if predictor is None:
            raise ConfigError(
                f"--where {criterion.text!r}: no model predicts {criterion.target!r}; they predict "
                f"{', '.join(known)}"
            )
        if predictor.classifies != (criterion.truth is not None):
            form = "is true" if predictor.classifies else "in LOW:HIGH"
            raise ConfigError(
                f"--where {criterion.text!r}: write '{criterion.target} {form}' for this model"
            )
        if not predictor.classifies and predictor.uncertainty is None:
            raise ConfigError(
                f"--where {criterion.text!r}: this model has no intervals, so no probability "
                "is known; train it with calibration rows (task.calibration=0.1)"
            )
