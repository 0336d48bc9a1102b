"""Does the attention come from what was learned? A check before reading it.

Shuffled weights: Adebayo et al., "Sanity Checks for Saliency Maps", arXiv 1810.03292.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from matattn.workflows.explain.subjects import HasSources, blocks_of


def depends_on_weights(
    subjects: Sequence[HasSources],
    methods: Callable[[HasSources], Mapping[str, Tensor]],
    scores: Sequence[Mapping[str, Tensor]],
    seed: int,
    advance: Callable[[int], Any],
) -> dict[str, Any]:
    """Return Kendall's tau between edge scores and those of the network with shuffled weights.

    Blocks are shuffled from the last to the first, each parameter among its own entries. A method
    whose order of the edges stays (tau near 1) shows what the network was built with, such as the
    decay with distance, and not what it learned.
    """
    counts = range(1, len(blocks_of(subjects[0].network)) + 1)
    taus: dict[str, list[float | None]] = {name: [] for name in scores[0]}
    for count in counts:
        network = copy.deepcopy(subjects[0].network)
        torch.manual_seed(seed)
        for block in blocks_of(network)[-count:]:
            shuffle(block)
        others = [methods(replace(cast(Any, subject), network=network)) for subject in subjects]
        for name, values in taus.items():
            values.append(_mean_tau(subjects, scores, others, name))
        advance(1)
    return {"shuffled_blocks": list(counts), "tau": taus}


@torch.no_grad()
def shuffle(module: nn.Module) -> None:
    """Put the entries of every parameter into a random order."""
    for parameter in module.parameters():
        flat = parameter.flatten()
        parameter.copy_(flat[torch.randperm(len(flat))].view_as(parameter))


def _mean_tau(
    subjects: Sequence[HasSources],
    scores: Sequence[Mapping[str, Tensor]],
    others: Sequence[Mapping[str, Tensor]],
    name: str,
) -> float | None:
    """Return the mean tau over structures whose scores ``name`` are not all equal, if any."""
    taus = []
    for subject, before, after in zip(subjects, scores, others, strict=True):
        for graph in range(subject.count):
            chosen = (subject.graph == graph) & subject.removable
            a, b = before[name][chosen].numpy(), after[name][chosen].numpy()
            if np.ptp(a) and np.ptp(b):
                taus.append(kendalltau(a, b).statistic)
    return float(np.mean(taus)) if taus else None
