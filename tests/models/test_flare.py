"""FLARE: contract, published sizes, the authors' networks, and the spectrum of the routing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from matattn.kernels.low_rank_routing import low_rank_routing
from matattn.kernels.low_rank_routing.spectrum import mixing_spectrum
from matattn.meshes.batch import MeshBatch
from matattn.models.flare import FLARE, FullAttention
from matattn.testing import MeshContract

GOLDEN = Path(__file__).parents[1] / "golden" / "flare"
SMALL = {"num_inputs": 3, "num_targets": 2, "dim": 16, "num_blocks": 2, "num_heads": 4}


class TestFLARE(MeshContract):
    network_class = FLARE
    arguments = {**SMALL, "num_latents": 6}


class TestFLAREPlusPlus(MeshContract):
    network_class = FLARE
    arguments = {
        **SMALL,
        "num_latents": 5,
        "scale": "sqrt",
        "qk_norm": True,
        "queries": "dynamic",
        "kv_depth": -1,
        "ffn_ratio": 2.0,
        "ffn_depth": 0,
    }


class TestVariant(MeshContract):
    network_class = FLARE
    arguments = {
        **SMALL,
        "num_latents": 7,
        "norm": "rms",
        "activation": "silu",
        "num_octaves": 2,
        "init": "xavier",
    }


class TestFullAttention(MeshContract):
    network_class = FullAttention
    arguments = SMALL


@pytest.mark.parametrize(
    "benchmark, inputs, heads, latents, parameters",
    [
        ("elasticity", 2, 8, 64, 592_641),
        ("darcy", 3, 16, 256, 691_009),
        ("airfoil", 2, 8, 256, 690_945),
        ("pipe", 2, 8, 128, 625_409),
        ("drivaerml_40k", 3, 8, 256, 691_009),
        ("lpbf", 3, 8, 128, 625_473),
    ],
)
def test_published_sizes(benchmark, inputs, heads, latents, parameters):
    network = FLARE(inputs, num_heads=heads, num_latents=latents)
    assert sum(p.numel() for p in network.parameters()) == parameters


GOLDEN_NETWORKS = {
    "model_qknorm_rms": {"norm": "rms", "qk_norm": True},
    "model_ratio_linear": {"kv_depth": -1, "ffn_ratio": 2.0, "ffn_depth": 1},
}


@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_golden_network(name):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        data = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    network = FLARE(**SMALL, num_latents=6, **GOLDEN_NETWORKS[name]).double()
    if name == "model_ratio_linear":  # k is a residual linear layer, v has no hidden layer
        from matattn.models.flare import ResidualMLP

        for block in network.blocks:
            block.att.v_proj = ResidualMLP(16, 16, 16, 0).double()
    state = {k.removeprefix("param."): v for k, v in data.items() if k.startswith("param.")}
    network.load_state_dict(state)
    inputs = data["x"][0].clone().requires_grad_()
    y = network(MeshBatch(inputs, torch.tensor([0, len(inputs)]), torch.empty(0)))
    assert (y - data["y"][0]).abs().max() <= 1e-12
    y.backward(data["dy"][0])
    assert (inputs.grad - data["dx"][0]).abs().max() <= 1e-12
    for key, parameter in network.named_parameters():
        difference = (parameter.grad - data[f"grad.{key}"]).abs().max()
        assert difference <= 1e-12, f"{key}: {difference:.1e}"


def test_golden_spectrum():
    with np.load(GOLDEN / "eigen.npz") as arrays:
        data = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    values, vectors = (t[0] for t in mixing_spectrum(data["q"], data["k"][0]))
    assert (values - data["eigvals"]).abs().max() <= 1e-12
    assert (data["W"] @ vectors - values * vectors).abs().max() <= 1e-12
    expected = data["eigvecs"] / data["eigvecs"].norm(dim=0)
    overlap = (vectors * expected).sum(0).abs()
    assert (overlap - 1).abs().max() <= 1e-9


@pytest.mark.parametrize("nodes", [3, 200])
def test_spectrum_of_any_mesh(nodes):
    """Eigenvalues lie in [0, 1], the first belongs to the constant field, and W x = lambda x."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(4, n, 8, generator=generator, dtype=torch.float64) for n in (12, nodes))
    values, vectors = mixing_spectrum(q, k)
    assert (values >= 0).all() and (values <= 1).all() and (values.diff() <= 0).all()
    assert (values[:, 0] - 1).abs().max() <= 1e-12
    assert (vectors[:, :, 0].abs() - nodes**-0.5).abs().max() <= 1e-10
    for part in range(0, 12, 4):  # eight columns at most are as many values as a head has
        x = vectors[..., part : part + 4]
        padded = torch.cat([x, torch.zeros_like(x)], -1)[None]
        mixed = low_rank_routing(q, k[None], padded)[0, ..., :4]
        assert (mixed - values[:, None, part : part + 4] * x).abs().max() <= 1e-10


def test_spectrum_of_a_network():
    torch.manual_seed(0)
    network = FLARE(**SMALL, num_latents=6).double()
    inputs = torch.randn(40, 3, dtype=torch.float64)
    batch = MeshBatch(inputs, torch.tensor([0, 40]), torch.empty(0))
    values, vectors = network.spectrum(batch)
    assert values.shape == (2, 4, 6) and [v.shape for v in vectors] == [(4, 40, 6)] * 2
    assert (values[..., 0] - 1).abs().max() <= 1e-12
    with pytest.raises(ValueError, match="spectrum needs one mesh, the batch holds 2"):
        network.spectrum(MeshBatch(inputs, torch.tensor([0, 10, 40]), torch.empty(0)))


def test_published_initialisation():
    torch.manual_seed(0)
    network = FLARE(2)
    for name, parameter in network.named_parameters():
        if name.endswith("latent_q"):
            assert 0.09 < parameter.std() < 0.11
        elif name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name or name == "out_proj.0.weight":
            assert (parameter == 1).all()
        else:
            assert 0.015 < parameter.std() < 0.025, name


def test_full_attention_has_the_size_of_the_routing():
    routing = FLARE(2, dim=32, num_blocks=4, num_heads=4, num_latents=32)
    full = FullAttention(2, dim=32, num_blocks=4, num_heads=4)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (routing, full)]
    assert sizes == [78_721, 78_849]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dim": 30}, "dim=30 is not a multiple of num_heads=8"),
        ({"scale": "two"}, "scale='two': expected one of one, sqrt"),
        ({"norm": "batch"}, "norm='batch': expected one of layer, rms"),
        ({"queries": "none"}, "queries='none': expected one of fixed, dynamic"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FLARE(2, **arguments)
