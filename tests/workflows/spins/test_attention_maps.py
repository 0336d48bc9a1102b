"""Attention maps, and networks that are frozen to them."""

import numpy as np

from matattn.datasets.j1j2 import load
from matattn.models.factored_attention import to_arrays
from matattn.workflows.spins.attention_maps import attention_maps, folded, freeze


def test_a_frozen_network_with_its_own_maps_is_the_same_state(network, perturbed):
    """Where the weights do not depend on the spins, freezing changes nothing."""
    system = load("test", "square", "6x6", 0.5)
    model = network(system, num_layers=2)
    variables, spins = perturbed(model, system)
    maps = attention_maps(model, variables, np.asarray(spins))
    assert maps.shape == (2, 12, 2, 9, 9) and maps.std(1).max() < 1e-15
    frozen, weights = freeze(model, variables, maps.mean(1))
    assert np.abs(frozen.apply(weights, spins) - model.apply(variables, spins)).max() < 1e-12
    alpha = to_arrays(variables)["blocks_0/attention/alpha"]
    assert np.abs(folded(model, maps.mean(1))[0] - alpha).max() < 1e-12
