"""The periodic attention operator against golden numbers, brute-force sums and its own reference.

Needs torch, numpy and pytest only.
"""

import ctypes
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from matattn.kernels import periodic_attention as package
from matattn.kernels.dispatch import BackendError
from matattn.kernels.periodic_attention import cpu, periodic_attention, reference, torch_ops

GOLDEN = Path(__file__).parents[1] / "golden" / "crystalformer"
CRYSTALS = ("po_sc", "nacl_conv", "zno_wurtzite", "triclinic6", "skew_elongated10")
RADIAL = {"spacing": 14 / 64, "width": 14 / 64}
MODES = ("converged", "adaptive", "R2")
HERE = (torch.device("cpu"), torch.float64)
CPU_REFUSES = cpu.refuses(*HERE)
BACKENDS = [name for name, backend in package.BACKENDS.items() if not backend.refuses(*HERE)]
INPUTS = ("q", "k", "v", "a", "weight", "distance")


@cache
def golden(crystal):
    with np.load(GOLDEN / f"core_{crystal}.npz") as arrays:
        return {name: torch.as_tensor(arrays[name]) for name in arrays.files}


def images_of(data, mode):
    """Images that a mode sums, and the box of each atom and head (None: all images)."""
    if mode == "R2":
        return reference.box_images(torch.tensor([2, 2, 2])), None
    if mode == "adaptive":
        half_widths = data["range_code"]
        return reference.box_images(half_widths.amax((0, 1))), half_widths
    # 9 sigma beyond the nearest image of the farthest pair: every pair's own sum has converged.
    nearest = neighbor_list(
        data["pos"], data["lattice"], reference.box_images(torch.tensor([2, 2, 2]))
    )
    farthest = nearest[0].view(len(data["pos"]) ** 2, -1).amin(1).max().item()
    cutoff = math.hypot(9 * data["sigma"].max().item(), farthest)
    return reference.sphere_images(data["pos"], data["lattice"], cutoff), None


def neighbor_list(pos, cell, images):
    """Every image of every atom: distance (differentiable), source, row_ptr, image."""
    atoms, count = len(pos), len(images)
    vectors = pos[None, :, None] + images.to(pos) @ cell - pos[:, None, None]
    distance = reference.safe_distance(vectors).flatten()
    source = torch.arange(atoms).repeat_interleave(count).repeat(atoms)
    row_ptr = torch.arange(atoms + 1) * atoms * count
    return distance, source, row_ptr, images.repeat(atoms * atoms, 1)


def golden_arguments(data, mode, dtype=torch.float64):
    pos = data["pos"].to(dtype).requires_grad_()
    cell = data["lattice"].to(dtype).requires_grad_()
    images, half_widths = images_of(data, mode)
    distance, source, row_ptr, image = neighbor_list(pos, cell, images)
    bias = None
    if half_widths is not None:
        target = torch.arange(len(pos)).repeat_interleave(row_ptr.diff())
        outside = (image.abs()[:, None] > half_widths[target]).any(-1)
        bias = torch.zeros(outside.shape, dtype=dtype).masked_fill(outside, -math.inf)
    leaves = [data[name].to(dtype).requires_grad_() for name in ("q", "k", "v", "a", "W_E")]
    return leaves, pos, cell, (distance, source, row_ptr), bias


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crystal", CRYSTALS)
def test_golden_output(crystal, mode, backend):
    data = golden(crystal)
    leaves, _, _, neighbors, bias = golden_arguments(data, mode)
    y, lse = periodic_attention(
        *leaves, *neighbors, **RADIAL, bias=bias, return_lse=True, backend=backend
    )
    assert (y - data[f"y_{mode}"]).abs().max() <= 1e-10
    if mode == "converged":
        assert (lse - data["lse"]).abs().max() <= 1e-10
    if mode == "R2":
        assert (y - data["y_R2_refcode"]).abs().max() <= 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("crystal", CRYSTALS)
def test_golden_gradients(crystal, backend):
    data = golden(crystal)
    leaves, pos, cell, neighbors, _ = golden_arguments(data, "converged")
    y = periodic_attention(*leaves, *neighbors, **RADIAL, backend=backend)
    gradients = torch.autograd.grad((data["gy"] * y).sum(), (*leaves, pos, cell))
    names = ("q", "k", "v", "a", "W_E", "pos", "lattice")
    for name, gradient in zip(names, gradients, strict=True):
        difference = (gradient - data[f"ygrad_{name}"]).abs().max()
        assert difference <= 1e-10, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("crystal", CRYSTALS)
def test_golden_single_precision(crystal):
    data = golden(crystal)
    leaves, _, _, neighbors, _ = golden_arguments(data, "converged", torch.float32)
    y = periodic_attention(*leaves, *neighbors, **RADIAL)
    assert (y - data["y_converged"]).abs().max() <= 2e-6
    gradients = torch.autograd.grad((data["gy"].float() * y).sum(), leaves)
    for name, gradient in zip(("q", "k", "v", "a", "W_E"), gradients, strict=True):
        expected = data[f"ygrad_{name}"]
        error = (gradient - expected).abs().max() / expected.abs().max().clamp(min=1)
        bound = 3e-5 if name == "a" else 5e-6  # the terms of a's gradient grow with d^2 and cancel
        assert error <= bound, f"{name}: {error:.1e} of the largest element"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crystal", CRYSTALS)
def test_golden_image_sums(crystal, mode):
    data = golden(crystal)
    images, half_widths = images_of(data, mode)
    alpha, beta = reference.image_sums(
        data["pos"], data["lattice"], data["a"], images, count=64, half_widths=half_widths, **RADIAL
    )
    assert (alpha - data[f"alpha_{mode}"]).abs().max() <= 1e-10
    assert (beta - data[f"beta_{mode}"]).abs().max() <= 1e-10
    y, lse = reference.pair_attention(data["q"], data["k"], data["v"], alpha, beta, data["W_E"])
    assert (y - data[f"y_{mode}"]).abs().max() <= 1e-10
    if mode == "converged":
        assert (lse - data["lse"]).abs().max() <= 1e-10


@pytest.mark.parametrize("crystal", CRYSTALS)
def test_golden_gradients_of_image_sums(crystal):
    """d/d(a, W, pos, lattice) of sum(gz alpha) + sum(gv W beta)."""
    data = golden(crystal)
    leaves = [data[name].clone().requires_grad_() for name in ("a", "W_E", "pos", "lattice")]
    a, weight, pos, cell = leaves
    images, _ = images_of(data, "converged")
    alpha, beta = reference.image_sums(pos, cell, a, images, count=64, **RADIAL)
    projected = torch.einsum("ijhk,hdk->ijhd", beta, weight)
    loss = (data["gz"] * alpha).sum() + (data["gv"] * projected).sum()
    for name, gradient in zip(
        ("a", "W_E", "pos", "lattice"), torch.autograd.grad(loss, leaves), strict=True
    ):
        difference = (gradient - data[f"grad_{name}"]).abs().max()
        assert difference <= 1e-10, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("crystal", CRYSTALS)
def test_golden_range_of_the_published_box(crystal):
    data = golden(crystal)
    cell = data["lattice"].expand(len(data["pos"]), 3, 3)
    with_margin = reference.adaptive_range(data["sigma"], cell)
    assert torch.equal(with_margin, data["range_code"].long())
    in_paper = reference.adaptive_range(data["sigma"], cell, margin=0.0)
    assert torch.equal(in_paper, data["range_paper"].long())


def random_arguments(counts, heads, dim, radial, dtype=torch.float64, seed=0):
    """Arguments with ``counts[i]`` neighbours of atom i, the first at distance zero."""
    generator = torch.Generator().manual_seed(seed)
    atoms, edges = len(counts), sum(counts)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    row_ptr = torch.tensor([0, *counts]).cumsum(0)
    source = torch.randint(atoms, (edges,), generator=generator)
    distance = 6 * torch.rand(edges, generator=generator, dtype=dtype)
    distance[row_ptr[:-1]] = 0
    a = -0.1 - torch.rand(atoms, heads, generator=generator, dtype=dtype)
    q, k, v = (normal(atoms, heads, dim) for _ in range(3))
    return [q, k, v, a, normal(heads, dim, radial), distance, source, row_ptr]


SIZES = [
    ([1], 1, 1, 1),
    ([1, 2, 3], 2, 5, 7),
    ([40, 3, 3, 17, 1, 90], 3, 4, 11),
    ([5] * 7, 8, 16, 64),
    ([13, 1, 29], 2, 3, 0),
]


@pytest.mark.parametrize("bias_shape", [None, "edges", "heads"])
@pytest.mark.parametrize("counts, heads, dim, radial", SIZES)
def test_backends_agree_in_output_and_every_gradient(counts, heads, dim, radial, bias_shape):
    arguments = random_arguments(counts, heads, dim, radial)
    edges = sum(counts)
    bias = None
    if bias_shape == "edges":
        bias = torch.rand(edges, dtype=torch.float64)
    elif bias_shape == "heads":
        bias = torch.zeros(edges, heads, dtype=torch.float64)
        bias[torch.rand(edges, heads) < 0.3] = -math.inf
        bias[arguments[-1][:-1]] = 0  # the atom itself stays visible
    results = {}
    for backend in BACKENDS:
        leaves = [tensor.clone().requires_grad_() for tensor in arguments[:6]]
        y, lse = periodic_attention(
            *leaves,
            *arguments[6:],
            spacing=0.5,
            width=0.4,
            bias=bias,
            return_lse=True,
            backend=backend,
        )
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        loss = (weights * y).sum() + lse.sin().sum()
        gradients = torch.autograd.grad(loss, leaves)
        results[backend] = {"y": y, "lse": lse, **dict(zip(INPUTS, gradients, strict=True))}
    for backend, result in results.items():
        for name, value in result.items():
            expected = results["reference"][name]
            error = (value - expected).abs().max() if value.numel() else torch.tensor(0.0)
            assert error <= 1e-12 * max(1, len(arguments[5])), f"{backend}, {name}: {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    arguments = random_arguments([3, 1, 6], 2, 3, 5)
    arguments[5] += 0.1  # away from d = 0, where the derivative is one-sided
    leaves = [tensor.requires_grad_() for tensor in arguments[:6]]
    bias = torch.rand(10, dtype=torch.float64)

    def function(*inputs):
        return periodic_attention(
            *inputs, *arguments[6:], spacing=0.5, width=0.4, bias=bias, return_lse=True,
            backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("moments", [False, True])
def test_opcheck(backend, moments):
    arguments = [*random_arguments([3, 1, 6], 2, 3, 5), None, None, None, None]
    if moments:
        shapes = (3, 2, 4), (2, 4, 5), (len(arguments[5]), 3)
        arguments[9:] = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    leaves = [t for t in arguments if t is not None and t.is_floating_point()]
    for tensor in leaves:
        tensor.requires_grad_()
    forward = torch.ops.matattn.periodic_attention.default
    torch.library.opcheck(forward, (*arguments, 0.5, 0.4, backend))
    detached = [t if t is None else t.detach() for t in arguments]
    outputs = forward(*detached, 0.5, 0.4, backend)
    y, lse, _, m = outputs
    backward = torch.ops.matattn.periodic_attention_backward.default
    incoming = [torch.ones_like(t) for t in (y, lse, m)]
    for distance_grad in (False, True):
        rest = (*outputs, 0.5, 0.4, backend, distance_grad, distance_grad and moments)
        torch.library.opcheck(backward, (*incoming, *detached, *rest))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e3, 1e10, 1e30])
def test_enormous_logits_have_finite_gradients(scale, backend):
    arguments = random_arguments([3, 9, 70, 5], 2, 3, 5, torch.float32)
    arguments[0] *= scale
    leaves = [tensor.requires_grad_() for tensor in arguments[:6]]
    y = periodic_attention(*leaves, *arguments[6:], spacing=0.5, width=0.4, backend=backend)
    gradients = torch.autograd.grad(y.sum(), leaves)
    for name, value in zip(("y", *INPUTS), (y, *gradients), strict=True):
        assert value.isfinite().all(), name


def test_very_unequal_logits_do_not_overflow():
    arguments = random_arguments([30, 2, 8], 2, 4, 6, torch.float32)
    arguments[0] *= 200
    y, lse = periodic_attention(*arguments, spacing=0.5, width=0.4, return_lse=True)
    expected, _ = reference.neighbor_attention(
        *(t.double() for t in arguments[:6]), *arguments[6:], None, 0.5, 0.4
    )
    assert lse.abs().max() > 100 and y.isfinite().all()
    assert (y - expected).abs().max() < 1e-4


def test_kept_geometry_notices_every_change():
    """The torch backend keeps the last geometry; a change in place or a new tensor must be seen."""
    arguments = random_arguments([5, 9, 2], 2, 3, 4)

    def both():
        options = {"spacing": 0.5, "width": 0.4}
        return (
            periodic_attention(*arguments, **options, backend="torch"),
            periodic_attention(*arguments, **options, backend="reference"),
        )

    def check():
        ours, expected = both()
        assert (ours - expected).abs().max() < 1e-12
        return ours

    first = check()
    plan = torch_ops._last_plan
    assert torch.equal(check(), first) and torch_ops._last_plan is plan
    arguments[5].mul_(1.3)  # distances, in place
    changed = check()
    assert (changed - first).abs().max() > 1e-6
    arguments[6].copy_(arguments[6].flip(0))  # sources, in place
    check()
    arguments[5] = arguments[5] / 1.7  # another tensor of the same shape
    check()
    arguments[5].data.mul_(1.1)  # a change that PyTorch does not count
    check()


def test_requested_backend(monkeypatch):
    arguments = random_arguments([2, 2], 1, 2, 3)
    options = {"spacing": 0.5, "width": 0.4}
    with pytest.raises(BackendError, match="no backend named 'cuda'; choose one of auto, cpu"):
        periodic_attention(*arguments, **options, backend="cuda")
    monkeypatch.setenv("MATATTN_BACKEND", "tpu")
    with pytest.raises(BackendError, match="'tpu'"):
        periodic_attention(*arguments, **options)
    monkeypatch.setenv("MATATTN_BACKEND", "reference")
    plan = torch_ops._last_plan
    periodic_attention(*arguments, **options)
    assert torch_ops._last_plan is plan  # the torch backend was not used


def test_wrong_shapes_are_named():
    arguments = random_arguments([2, 2], 1, 2, 3)
    arguments[3] = arguments[3].expand(2, 4)
    with pytest.raises(ValueError, match=r"a has shape \(2, 4\), expected \(2, 1\)"):
        periodic_attention(*arguments, spacing=0.5, width=0.4)


def test_an_atom_without_neighbours_is_refused():
    arguments = random_arguments([2, 0, 1], 1, 2, 3)
    arguments[5] = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="no neighbour"):
        periodic_attention(*arguments, spacing=0.5, width=0.4, backend="torch")


@pytest.mark.skipif(CPU_REFUSES is not None, reason=f"cpu backend: {CPU_REFUSES}")
@pytest.mark.parametrize(
    "source, row_ptr, message",
    [
        ([0, 0, 1], [0, 2, 2, 3], "an atom has no neighbour"),
        ([0, 1, 3], [0, 1, 2, 3], "source must lie in"),
        ([0, -1, 2], [0, 1, 2, 3], "source must lie in"),
        ([0, 1, 2], [0, 1, 2, 2], "row_ptr must run from 0"),
        ([0, 1, 2], [0, 3, 2, 3], "an atom has no neighbour"),
    ],
)
def test_compiled_code_refuses_lists_that_are_not_lists(source, row_ptr, message):
    arguments = random_arguments([1, 1, 1], 1, 2, 3)
    arguments[6:] = torch.tensor(source), torch.tensor(row_ptr)
    with pytest.raises(ValueError, match=message):
        periodic_attention(*arguments, spacing=0.5, width=0.4, backend="cpu")


@pytest.mark.skipif(CPU_REFUSES is not None, reason=f"cpu backend: {CPU_REFUSES}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_results_do_not_depend_on_the_number_of_threads(dtype):
    arguments = random_arguments([30, 2, 8, 61, 17] * 9, 8, 16, 64, dtype)
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        leaves = [tensor.clone().requires_grad_() for tensor in arguments[:6]]
        y, lse = periodic_attention(
            *leaves, *arguments[6:], spacing=0.2, width=0.2, return_lse=True, backend="cpu"
        )
        results.append([y, lse, *torch.autograd.grad(y.sum() + lse.sum(), leaves)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            assert torch.equal(one, another)


@pytest.mark.skipif(CPU_REFUSES is not None, reason=f"cpu backend: {CPU_REFUSES}")
@pytest.mark.parametrize(
    "heads, dim, radial", [(8, 16, 64), (4, 16, 64), (3, 5, 7), (17, 4, 64), (8, 16, 0)]
)
@pytest.mark.parametrize("bias_shape", [None, "edges", "heads"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_code_for_every_kind_of_processor(heads, dim, radial, bias_shape, dtype):
    library = cpu._library()
    most = ctypes.c_int.in_dll(library, "most_variant")
    arguments = random_arguments([30, 2, 8, 61, 17, 129], heads, dim, radial, dtype)
    shape = {None: None, "edges": (247,), "heads": (247, heads)}[bias_shape]
    bias = None if shape is None else torch.rand(shape, dtype=dtype).log()
    results = {}
    try:
        for most.value in range(3):
            leaves = [tensor.clone().requires_grad_() for tensor in arguments[:6]]
            y, lse = periodic_attention(
                *leaves, *arguments[6:], spacing=0.2, width=0.2, bias=bias, return_lse=True,
                backend="cpu",
            )  # fmt: skip
            gradients = torch.autograd.grad(y.sin().sum() + lse.sin().sum(), leaves)
            results[library.variant()] = [y, lse, *gradients]
    finally:
        most.value = 2
    assert set(results) == set(range(library.variant() + 1))
    expected = results[0]
    for result in results.values():
        for name, value, other in zip(("y", "lse", *INPUTS), result, expected, strict=True):
            if value.numel():
                error = (value - other).abs().max() / other.abs().max().clamp(min=1e-3)
                assert error <= (1e-12 if dtype == torch.float64 else 2e-5), f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", ["q", "k", "v", "a", "distance"])
def test_what_is_not_a_number_stays_visible(place, dtype, backend):
    """Bad data must reach the loss, where it is noticed."""
    arguments = random_arguments([3, 4, 2], 2, 3, 5, dtype)
    arguments[6][:] = torch.tensor([0, 1, 2] * 3)
    arguments[INPUTS.index(place)][1] = math.nan
    if backend == "torch" and place == "distance":
        with pytest.raises(ValueError, match="NaN"):  # no shell of neighbours holds it
            periodic_attention(*arguments, spacing=0.5, width=0.4, backend=backend)
        return
    y = periodic_attention(*arguments, spacing=0.5, width=0.4, backend=backend)
    seen = y.isnan().flatten(1).any(1)
    assert seen[{"distance": [0], "q": [1], "a": [1]}.get(place, [0, 1])].all()


@pytest.mark.parametrize("name", ["spacing", "width"])
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_lengths_that_are_none_are_refused(name, value):
    arguments = random_arguments([2, 2], 1, 2, 3)
    with pytest.raises(ValueError, match=f"{name}=.*expected a length above 0"):
        periodic_attention(*arguments, **{"spacing": 0.5, "width": 0.4, name: value})


@pytest.mark.skipif(CPU_REFUSES is not None, reason=f"cpu backend: {CPU_REFUSES}")
@pytest.mark.parametrize("spacing", [1e-30, 1e-3, 5.0, 1e30])
def test_compiled_code_at_extreme_spacings(spacing):
    arguments = random_arguments([40, 3], 2, 3, 40)
    results = [
        periodic_attention(*arguments, spacing=spacing, width=0.4, backend=backend)
        for backend in ("cpu", "reference")
    ]
    assert (results[0] - results[1]).abs().max() <= 1e-11


@pytest.mark.skipif(CPU_REFUSES is not None, reason=f"cpu backend: {CPU_REFUSES}")
def test_parts_of_large_batches():
    """Crystals of many sizes, one larger than a part, and atoms of crystals that interleave."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 200, (18,), generator=generator).tolist() + [700, 1, 520]
    source, start = [], 0
    for size in sizes:
        source.append(start + torch.randint(size, (3 * size,), generator=generator))
        start += size
    interleaved = torch.arange(start, start + 600)
    source.append(torch.stack([interleaved, interleaved.flip(0), interleaved], 1).flatten())
    arguments = random_arguments([3] * (start + 600), 3, 4, 9)
    arguments[6] = torch.cat(source)
    results = []
    for backend in ("cpu", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in arguments[:6]]
        y = periodic_attention(*leaves, *arguments[6:], spacing=0.5, width=0.4, backend=backend)
        results.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
    for name, value, expected in zip(("y", *INPUTS), *results, strict=True):
        error = (value - expected).abs().max()
        assert error <= 1e-12 * max(1, expected.abs().max()), f"{name}: {error:.1e}"


@pytest.mark.skipif(CPU_REFUSES is not None, reason=f"cpu backend: {CPU_REFUSES}")
def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "_ABI", -1)
    assert "install matattn again" in cpu.refuses(*HERE)


def test_without_a_compiled_library_the_torch_backend_serves(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "_library", lambda: None)
    monkeypatch.setattr("matattn.kernels.dispatch._announced", set())
    arguments = random_arguments([2, 2], 1, 2, 3)
    with caplog.at_level("INFO", logger="matattn"):
        for _ in range(3):
            periodic_attention(*arguments, spacing=0.5, width=0.4)
    (record,) = caplog.records
    assert "runs on backend 'torch'" in record.getMessage()
    assert "not 'cpu': it was not compiled when matattn was installed" in record.getMessage()
    with pytest.raises(BackendError, match="'cpu' cannot take this call: it was not compiled"):
        periodic_attention(*arguments, spacing=0.5, width=0.4, backend="cpu")


@pytest.mark.parametrize("heads, dim, radial", [(1, 3, 1), (5, 7, 3), (9, 2, 40), (17, 4, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spacing, width", [(0.2, 0.2), (0.5, 0.1), (0.1, 0.6)])
def test_sizes_that_do_not_fill_vectors(heads, dim, radial, dtype, spacing, width):
    """Every backend against the float64 reference, relative to the largest element."""
    arguments = random_arguments([7, 1, 130, 64, 65], heads, dim, radial, dtype)
    results = {}
    for backend in BACKENDS:
        exact = torch.float64 if backend == "reference" else dtype
        leaves = [tensor.to(exact).requires_grad_() for tensor in arguments[:6]]
        y = periodic_attention(
            *leaves, *arguments[6:], spacing=spacing, width=width, backend=backend
        )
        weights = torch.linspace(-1, 1, y.numel(), dtype=exact).view_as(y)
        results[backend] = [y, *torch.autograd.grad((weights * y).sum(), leaves)]
    bound = 1e-12 if dtype == torch.float64 else 2e-5
    for backend, result in results.items():
        for name, value, expected in zip(("y", *INPUTS), result, results["reference"], strict=True):
            error = (value - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
            assert error <= bound, f"{backend}, {name}: {error:.1e}"


def test_autocast_sums_in_float32():
    arguments = random_arguments([4, 3], 2, 8, 5, torch.float32)
    settings = {"spacing": 0.5, "width": 0.4}
    short = [tensor.bfloat16().requires_grad_() for tensor in arguments[:3]]
    with torch.autocast("cpu", torch.bfloat16):
        y = periodic_attention(*short, *arguments[3:], **settings)
    exact = [tensor.detach().float().requires_grad_() for tensor in short]
    expected = periodic_attention(*exact, *arguments[3:], **settings)
    assert y.dtype == torch.float32 and torch.equal(y, expected)
    found = torch.autograd.grad(y.square().sum(), short)
    right = torch.autograd.grad(expected.square().sum(), exact)
    for one, other in zip(found, right, strict=True):
        assert one.dtype == torch.bfloat16 and torch.equal(one, other.bfloat16())
