"""How far to trust the type of a span: a set of types that holds the true one.

Split-conformal classification (Sadinle et al., JASA 114, 223 (2019), arXiv 1609.00451): a type is
in the set if its probability is at least 1 - q, with q the ⌈(n + 1) L⌉-th smallest of one minus the
probability of the true type, over the n spans that the network finds in sentences it was not
trained on. "O" stands for what is no span with these ends. New spans that are exchangeable with
those have their true type in the set with a probability of at least L; spans of one sentence are
not, quite, so that holds on average over many sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matattn.uncertainty import LEVEL, conformal_quantile

METHOD = "label_sets"


@dataclass(frozen=True)
class LabelSets:
    """Sets of types for spans; ``scores`` [n] are those of the calibration spans."""

    scores: Tensor

    @classmethod
    def fit(cls, chances: np.ndarray, true: Sequence[int]) -> LabelSets:
        """Fit to the probabilities [n, K] of the types of found spans, and their true types."""
        rows = np.arange(len(chances))
        return cls(torch.from_numpy(1 - chances[rows, np.asarray(true)]).float())

    def inside(self, chances: np.ndarray, level: float = LEVEL) -> np.ndarray:
        """Return which types [m, K] are in the sets of spans, from probabilities [m, K].

        The most probable one always is.
        """
        found = 1 - chances <= conformal_quantile(self.scores, level) + 1e-6  # of single precision
        found[np.arange(len(chances)), chances.argmax(1)] = True
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Return what a bundle keeps as tensors."""
        return {"scores": self.scores}

    def config(self) -> dict[str, Any]:
        """Return what a bundle keeps as plain values."""
        return {"method": METHOD, "level": LEVEL}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LabelSets:
        """Return the inverse of ``config()`` and ``tensors()``; KeyError names what is wrong."""
        if config["method"] != METHOD:
            raise KeyError(config["method"])
        return cls(tensors["scores"])
