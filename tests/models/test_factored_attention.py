"""Transformer wave functions: sizes, golden values, invariance, and the torch twin."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from matattn.models.factored_attention import (
    ATTENTIONS,
    Attention,
    TransformerWaveFunction,
    from_arrays,
    log_cosh,
    parameter_count,
    to_arrays,
)
from matattn.models.factored_attention_torch import TorchWaveFunction
from matattn.models.symmetrized import Symmetrized
from matattn.spins import displacements

GOLDEN = Path(__file__).parents[1] / "golden" / "wavefunction"


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    jax.config.update("jax_enable_x64", True)


def count(model):
    shape = jax.ShapeDtypeStruct((1, int(np.prod(model.extent))), jnp.float64)
    variables = jax.eval_shape(model.init, jax.random.key(0), shape)
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    "arguments, published",
    [
        ({"dim": 60, "num_heads": 10, "num_layers": 4}, 155_620),
        ({"dim": 72, "num_heads": 12, "num_layers": 8}, 434_760),
        ({"dim": 72, "num_heads": 12, "num_layers": 8, "ffn_ratio": 2}, 267_720),
    ],
)
def test_published_sizes(arguments, published):
    model = TransformerWaveFunction((10, 10), **arguments)
    assert count(model) == parameter_count(model) == published


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("more", [{}, {"head_norm": False}])
def test_size_by_formula(attention, more):
    model = TransformerWaveFunction((6, 4), dim=8, num_heads=2, attention=attention, **more)
    assert count(model) == parameter_count(model)


def test_size_without_translation_invariance():
    model = TransformerWaveFunction((6, 4), dim=8, num_heads=2, translation_invariant=False)
    assert count(model) == parameter_count(model)


def published_names(golden):
    """The arrays of a golden network by our names."""
    attention = {"v": "value", "o": "output", "q": "query", "k": "key"}
    arrays = {"embedding/kernel": golden["emb_w"], "embedding/bias": golden["emb_b"]}
    for layer in range(2):
        here = f"blocks_{layer}"
        arrays[f"{here}/attention/alpha"] = golden[f"l{layer}_alpha"]
        for short, name in attention.items():
            if f"l{layer}_w{short}" in golden:
                arrays[f"{here}/attention/{name}/kernel"] = golden[f"l{layer}_w{short}"]
                arrays[f"{here}/attention/{name}/bias"] = golden[f"l{layer}_b{short}"]
        for short, name in {"ln1": "attention_norm", "ln2": "mlp_norm"}.items():
            arrays[f"{here}/{name}/scale"] = golden[f"l{layer}_{short}_g"]
            arrays[f"{here}/{name}/bias"] = golden[f"l{layer}_{short}_b"]
        for short, name in {"1": "expand", "2": "contract"}.items():
            arrays[f"{here}/{name}/kernel"] = golden[f"l{layer}_w{short}"]
            arrays[f"{here}/{name}/bias"] = golden[f"l{layer}_b{short}"]
    for short, name in {"lnz": "sum_norm", "lnr": "real_norm", "lni": "imag_norm"}.items():
        arrays[f"{name}/scale"], arrays[f"{name}/bias"] = golden[f"{short}_g"], golden[f"{short}_b"]
    for short, name in {"re": "real", "im": "imag"}.items():
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = (
            golden[f"{short}_w"],
            golden[f"{short}_b"],
        )
    return arrays


SMALL = {"dim": 8, "num_heads": 2, "num_layers": 2}


@pytest.mark.parametrize("attention", ["factored", "t5", "decoupled"])
def test_golden_networks(attention):
    golden = np.load(GOLDEN / f"vit_golden_{attention}.npz")
    arrays = published_names(golden)
    model = TransformerWaveFunction((4, 4), attention=attention, **SMALL)
    found = np.asarray(model.apply(from_arrays(arrays), golden["spins"]))
    ratios, wanted = (np.exp(x - x[0]) for x in (found, golden["log_psi"]))
    assert np.abs(ratios - wanted).max() < 1e-12 * np.abs(wanted).max()
    twin = TorchWaveFunction((4, 4), attention=attention, **SMALL)
    twin.load_arrays(arrays)
    with torch.no_grad():
        again = twin(torch.from_numpy(golden["spins"])).numpy()
    assert np.abs(again - found).max() < 1e-12


@pytest.mark.parametrize("kind", ["factored", "t5", "decoupled"])
def test_golden_attention_has_the_sign_of_displacements(kind):
    """On 3x3 patches alpha at j - i and at i - j differ; on 2x2 they would not."""
    golden = np.load(GOLDEN / "attention_golden.npz")
    assert (displacements((3, 3)) == golden["disp"]).all()
    params = {"alpha": jnp.asarray(golden["alpha"])}
    names = {"value": "v", "output": "o"} | (
        {} if kind == "factored" else {"query": "q", "key": "k"}
    )
    for name, short in names.items():
        params[name] = {"kernel": golden[f"w{short}"], "bias": golden[f"b{short}"]}
    found = Attention((3, 3), 8, 2, kind).apply({"params": params}, golden["x"])
    assert np.abs(found - golden[f"y_{kind}"]).max() < 1e-12


def random_network(extent=(6, 6), **arguments):
    model = TransformerWaveFunction(extent, **{**SMALL, **arguments})
    sites = int(np.prod(extent))
    spins = np.where(np.random.default_rng(0).random((5, sites)) < 0.5, -1.0, 1.0)
    variables = model.init(jax.random.key(1), spins)
    generator = np.random.default_rng(2)
    variables = jax.tree.map(lambda x: x + 0.3 * generator.normal(size=x.shape), variables)
    return model, variables, spins


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_twin_agrees_and_weights_go_both_ways(attention):
    model, variables, spins = random_network(attention=attention)
    arrays = to_arrays(variables)
    twin = TorchWaveFunction((6, 6), attention=attention, **SMALL)
    twin.load_arrays(arrays)
    with torch.no_grad():
        found = twin(torch.from_numpy(spins)).numpy()
    assert np.abs(found - model.apply(variables, spins)).max() < 1e-12
    back = twin.to_arrays()
    assert back.keys() == arrays.keys()
    assert all((back[name] == arrays[name]).all() for name in arrays)


def test_attention_maps_of_the_twin():
    model, variables, spins = random_network(attention="t5")
    twin = TorchWaveFunction((6, 6), attention="t5", **SMALL)
    twin.load_arrays(to_arrays(variables))
    with torch.no_grad():
        maps = twin.attention_maps(torch.from_numpy(spins))
    assert maps.shape == (2, 5, 2, 9, 9)
    assert maps.sum(-1).allclose(torch.ones((), dtype=maps.dtype))
    assert maps.std(1).min() > 0


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_invariant_under_translations_by_patches_only(attention):
    model, variables, spins = random_network(attention=attention)
    lattice = spins.reshape(-1, 6, 6)
    by_patch, by_site = (np.roll(lattice, (n, 2 * n), (1, 2)).reshape(-1, 36) for n in (2, 1))
    psi = model.apply(variables, spins)
    assert np.abs(model.apply(variables, by_patch) - psi).max() < 1e-12
    assert np.abs(model.apply(variables, by_site) - psi).max() > 1e-3


def test_symmetrized_is_the_mean_over_the_group():
    model, variables, spins = random_network((4, 4))
    sites = np.arange(16).reshape(4, 4)
    group = [np.roll(sites, (a, b), (0, 1)).ravel().tolist() for a in (0, 1) for b in (0, 1)]
    wrapped = Symmetrized(model, tuple(map(tuple, np.array(group).tolist())), flip=True)
    found = wrapped.apply({"params": {"inner": variables["params"]}}, spins)
    images = [sign * spins[:, g] for g in group for sign in (1, -1)]
    mean = np.mean([np.exp(model.apply(variables, image)) for image in images], axis=0)
    assert np.abs(np.exp(found) - mean).max() < 1e-12 * np.abs(mean).max()


def test_log_cosh_is_stable():
    z = jnp.array([0.3 + 0.2j, -0.3 + 0.2j, 800 + 1j, -800 + 1j])
    found = log_cosh(z)
    assert np.isfinite(found).all()
    assert np.exp(found[:2]) == pytest.approx(np.cosh(z[:2]), abs=1e-14)


@pytest.mark.parametrize(
    "extent, arguments, message",
    [
        ((6, 5), {}, r"patches of \(2, 2\) sites do not divide"),
        ((8,), {}, "do not divide a lattice"),
        ((4, 4), {"attention": "sparse"}, "expected one of"),
        ((4, 4), {"dim": 10, "num_heads": 4}, "not a multiple of num_heads"),
        ((4, 4), {"dim": 8, "num_heads": 4}, "heads of width 2, which do not train"),
        (
            (4, 4),
            {"attention": "t5", "translation_invariant": False},
            "expected attention='factored'",
        ),
    ],
)
def test_wrong_arguments(extent, arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerWaveFunction(extent, **arguments)
