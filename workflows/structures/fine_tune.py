"""Start a training from the weights of an earlier model: ``init_from=mp-formation-energy``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from matattn import bundle, pretrained
from matattn.structures.network import StructureNetwork
from matattn.units import Property


def start_from(
    network: StructureNetwork,
    model: str | Path,
    targets: Sequence[Property],
    normaliser: tuple[Tensor, Tensor],
) -> None:
    """Give ``network`` the weights of a model (name or folder) with the same constructor arguments.

    A target that the model already predicts keeps its row of the output layer, so that the training
    starts from the model's predictions; rows of new targets, or of ones in another unit, stay as
    they are. ``normaliser`` is the mean and the standard deviation [T] of the new labels. Of an
    ensemble, the first member.
    """
    networks, description, _ = bundle.load(pretrained.find(model))
    source = cast(StructureNetwork, networks[0])
    output = network.output_layer()
    weight, bias = output.weight.detach().clone(), output.bias.detach().clone()
    known = source.output_layer()
    names = [(target["name"], target["unit"]) for target in description["targets"]]
    constants = network.element_constants  # as fitted to the new labels
    old = [torch.tensor(description["normaliser"][key]) for key in ("mean", "std")]
    for row, target in enumerate(targets):
        if (target.name, target.unit) in names:
            column = names.index((target.name, target.unit))
            mean, std = (values[row] for values in normaliser)
            weight[row] = known.weight[column] * old[1][column] / std
            bias[row] = (known.bias[column] * old[1][column] + old[0][column] - mean) / std
            if constants is not None:
                theirs = source.element_constants
                assert theirs is not None  # the same class with the same arguments
                constants[:, row] = theirs[:, column] * old[1][column] / std
    if constants is not None:
        assert source.element_constants is not None
        source.element_constants.copy_(constants)
    known.weight, known.bias = nn.Parameter(weight), nn.Parameter(bias)
    network.load_state_dict(source.state_dict())
