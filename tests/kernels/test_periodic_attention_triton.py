"""The Triton backend: on a GPU where there is one, else interpreted, and compiled ahead of time.

Triton decides when its kernels are imported whether it interprets them. On a machine without a GPU
``test_interpreted`` runs this file, and what test_periodic_attention.py asks of every backend, in
another process with TRITON_INTERPRET=1. Needs torch, triton, numpy and pytest only.
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from matattn.kernels import triton_support
from matattn.kernels.periodic_attention import periodic_attention

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REFUSES = triton_support.refuses(DEVICE, torch.float32)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RESULTS = ("y", "lse", "q", "k", "v", "a", "weight", "distance")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
on_device = pytest.mark.skipif(REFUSES is not None, reason=f"triton backend: {REFUSES}")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


common = load(ROOT / "tests" / "kernels" / "test_periodic_attention.py")


def interpret(*tests):
    """Run tests with Triton's interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Triton 3.6 reads the bounds of a loop so; NumPy 2.4 no longer lets it.
    command += ["-W", "ignore:Conversion of an array with ndim:DeprecationWarning", *tests]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stdout:
        pytest.skip("this Triton's interpreter does not work with NumPy 2.4")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="tested in this process")
def test_interpreted():
    shared = "tests/kernels/test_periodic_attention.py::test_"
    interpret(
        "tests/kernels/test_periodic_attention_triton.py",
        f"{shared}golden_output[po_sc-converged-triton]",
        f"{shared}golden_output[zno_wurtzite-R2-triton]",
        f"{shared}golden_output[triclinic6-adaptive-triton]",
        f"{shared}golden_gradients[po_sc-triton]",
        f"{shared}opcheck[False-triton]",
        f"{shared}opcheck[True-triton]",
        "tests/kernels/test_periodic_moments.py::test_it_is_the_definition[sizes3-triton]",
        "tests/kernels/test_periodic_moments.py::test_gradients_are_those_of_the_formula"
        "[sizes0-triton]",
    )


@needs_triton
@pytest.mark.slow
def test_interpreted_thoroughly():
    # Minutes more with these crystals, and with finite differences of what test_second_derivatives
    # differentiates too.
    tests = "(triton or agree or fill_vectors) and not (skew or nacl_conv or gradcheck)"
    interpret("tests/kernels/test_periodic_attention.py", "-k", tests)


def evaluate(arguments, bias, backend, dtypes):
    """y, lse and all gradients; q, k, v, a, weight and distance are of ``dtypes``."""
    leaves = [t.to(DEVICE, d).requires_grad_() for t, d in zip(arguments, dtypes, strict=False)]
    y, lse = periodic_attention(
        *leaves, *(t.to(DEVICE) for t in arguments[6:]), spacing=0.4, width=0.4,
        bias=None if bias is None else bias.to(DEVICE, dtypes[5]), return_lse=True, backend=backend,
    )  # fmt: skip
    weights = torch.arange(y.numel(), device=DEVICE).view_as(y) % 17 / 8 - 1  # exact in all dtypes
    loss = (weights * y).sum() + lse.sin().sum()
    return dict(zip(RESULTS, (y, lse, *torch.autograd.grad(loss, leaves)), strict=True))


def check(arguments, bias, dtypes, bounds):
    """Largest errors against the float64 reference, of the largest element: outputs, gradients."""
    arguments[:6] = [t.to(d) for t, d in zip(arguments, dtypes, strict=False)]
    results = evaluate(arguments, bias, "triton", dtypes)
    exact = evaluate(arguments, bias, "reference", (torch.float64,) * 6)
    for name, value in results.items():
        assert value.isfinite().all(), name
        if value.numel():
            difference = (value - exact[name]).abs().max()
            error = difference / exact[name].abs().max().clamp(min=1e-3)
            bound = bounds[0] if name in ("y", "lse") else bounds[1]
            assert error <= bound, f"{name}: {error:.1e}"
    return results


def make_bias(kind, arguments):
    """A constant for every neighbour [E], or -inf for 30% of neighbours and heads [E, H]."""
    edges, heads = len(arguments[5]), arguments[3].shape[1]
    generator = torch.Generator().manual_seed(1)
    if kind == "edges":
        return torch.rand(edges, generator=generator, dtype=torch.float64)
    if kind == "heads":
        hidden = torch.rand(edges, heads, generator=generator, dtype=torch.float64) < 0.3
        hidden[arguments[-1][:-1]] = False  # the atom itself stays visible
        return torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)
    return None


PRECISIONS = {torch.float32: (1e-6, 2e-5), torch.float64: (1e-10, 1e-10)}


@on_device
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", [None, "edges", "heads"])
@pytest.mark.parametrize("counts, heads, dim, radial", common.SIZES)
def test_output_and_every_gradient(counts, heads, dim, radial, kind, dtype):
    arguments = common.random_arguments(counts, heads, dim, radial)
    check(arguments, make_bias(kind, arguments), (dtype,) * 6, PRECISIONS[dtype])


@on_device
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("heads, dim, radial", [(1, 3, 1), (17, 4, 64), (2, 300, 5)])
def test_sizes_that_do_not_fill_blocks(heads, dim, radial, dtype):
    """Several groups of heads, padding everywhere, lists that end around the edge of a block."""
    arguments = common.random_arguments([15, 16, 17, 31, 32, 33, 65], heads, dim, radial)
    check(arguments, None, (dtype,) * 6, PRECISIONS[dtype])


@on_device
@pytest.mark.parametrize("visible", [0, 40, 99])
def test_blocks_in_which_a_head_sees_nothing(visible):
    arguments = common.random_arguments([100, 100], 2, 3, 4)
    bias = torch.zeros(200, 2)
    bias[:100, 1] = -math.inf
    bias[visible, 1] = 0
    results = check(arguments, bias, (torch.float32,) * 6, PRECISIONS[torch.float32])
    assert (results["lse"][0, 1] < results["lse"][0, 0]).item()


@on_device
def test_very_unequal_logits_do_not_overflow():
    arguments = common.random_arguments([30, 2, 80], 2, 4, 6)
    arguments[0] *= 200
    bounds = (1e-5, 1e-3)  # logits of some hundred, rounded to single precision
    results = check(arguments, None, (torch.float32,) * 6, bounds)
    assert results["lse"].abs().max() > 100


@on_device
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision(dtype, mixed):
    """Inputs of 16 bits; mixed: a, weight and distance in single precision, as in autocast."""
    if dtype == torch.bfloat16 and INTERPRETED:
        pytest.skip("Triton's interpreter computes bfloat16 wrongly")
    arguments = common.random_arguments([70, 3, 17], 3, 5, 7)
    dtypes = (dtype,) * 3 + (torch.float32 if mixed else dtype,) * 3
    bound = 4 * torch.finfo(dtype).eps
    results = check(arguments, None, dtypes, (bound, bound))
    assert results["y"].dtype == dtype and results["lse"].dtype == torch.float32
    for name, expected in zip(RESULTS[2:], dtypes, strict=True):
        assert results[name].dtype == expected


@on_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_described_to_the_compiler(dtype):
    arguments = [t.to(DEVICE) for t in common.random_arguments([3, 1, 6], 2, 3, 5)]
    arguments[:6] = [t.to(dtype) for t in arguments[:6]]
    rest = (None, None, None, None, 0.5, 0.4, "triton")
    forward = torch.ops.matattn.periodic_attention.default
    torch.library.opcheck(forward, (*arguments, *rest), test_utils="test_faketensor")


@on_device
def test_golden_single_precision():
    data = common.golden("po_sc")
    leaves, _, _, neighbors, _ = common.golden_arguments(data, "converged", torch.float32)
    leaves, neighbors = ([t.to(DEVICE) for t in tensors] for tensors in (leaves, neighbors))
    y = periodic_attention(*leaves, *neighbors, **common.RADIAL, backend="triton")
    assert (y.cpu() - data["y_converged"]).abs().max() <= 2e-6
    gradients = torch.autograd.grad((data["gy"].to(y) * y).sum(), leaves)
    for name, gradient in zip(("q", "k", "v", "a", "W_E"), gradients, strict=True):
        expected = data[f"ygrad_{name}"]
        error = (gradient.cpu() - expected).abs().max() / expected.abs().max().clamp(min=1)
        bound = 3e-5 if name == "a" else 5e-6  # as for the other backends
        assert error <= bound, f"{name}: {error:.1e} of the largest element"


@on_device
def test_second_derivatives():
    arguments = [t.to(DEVICE) for t in common.random_arguments([3, 1], 2, 3, 2)]
    arguments[5] += 0.1  # away from d = 0, where the derivative is one-sided

    def function(*leaves):
        return periodic_attention(
            *leaves, *arguments[6:], spacing=0.5, width=0.4, return_lse=True, backend="triton"
        )

    leaves = [t.requires_grad_() for t in arguments[:6]]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@on_device
def test_arrays_with_gaps():
    arguments = common.random_arguments([5, 40], 3, 4, 6)
    expected = evaluate(arguments, None, "triton", (torch.float64,) * 6)
    arguments[:4] = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in arguments[:4]]
    results = evaluate(arguments, None, "triton", (torch.float64,) * 6)
    for name, value in results.items():
        assert torch.equal(value, expected[name]), name


@on_device
def test_the_same_call_gives_the_same_bits():
    arguments = common.random_arguments([100, 3, 64, 40], 8, 16, 64)
    dtypes = (torch.float32,) * 6
    first, second = (evaluate(arguments, None, "triton", dtypes) for _ in range(2))
    for name, value in second.items():
        assert torch.equal(value, first[name]), name


@on_device
def test_empty_batch():
    q, k, v, a, weight, distance, source, row_ptr = common.random_arguments([1], 2, 3, 5)
    arguments = [q[:0], k[:0], v[:0], a[:0], weight, distance[:0], source[:0], row_ptr[:1]]
    results = evaluate(arguments, None, "triton", (torch.float32,) * 6)
    assert results["y"].shape == (0, 2, 3) and results["lse"].shape == (0, 2)
    for name, argument in zip(RESULTS[2:], arguments, strict=False):
        assert results[name].shape == argument.shape and not results[name].any()


@on_device
def test_an_atom_without_neighbours_is_refused():
    arguments = common.random_arguments([2, 1, 1], 1, 2, 3)
    arguments[7] = torch.tensor([0, 2, 2, 4])
    with pytest.raises(ValueError, match="no neighbour"):
        evaluate(arguments, None, "triton", (torch.float32,) * 6)


def test_reasons_to_refuse(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert (
        triton_support.refuses(cpu, torch.float32)
        == "it runs on NVIDIA GPUs, the tensors are on cpu"
    )
    assert "not torch.int64" in triton_support.refuses(gpu, torch.int64)
    monkeypatch.setattr(triton_support, "installed", lambda: None)
    assert "not installed" in triton_support.refuses(gpu, torch.float32)


def test_importing_the_package_does_not_import_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules;"
        "from matattn.kernels.periodic_attention import periodic_attention as f;"
        "q, s = torch.ones(1, 1, 1), torch.zeros(1, dtype=torch.int64);"
        "f(q, q, q, -q[0], q, q[0, 0], s, torch.tensor([0, 1]), spacing=1.0, width=1.0);"
        "assert before or 'triton' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)


def compile_report():
    return load(ROOT / "benchmarks" / "triton_compile_report.py")


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted in this process")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("kernel", ["forward", "backward_target", "backward_source"])
def test_compiled_kernels_fit_on_the_chip(kernel, arch, tmp_path, monkeypatch):
    """Compiled ahead of time for compute capabilities 8.0 and 9.0, with or without a GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    report = compile_report()
    for variant in report.variants():
        if (variant.kernel, variant.arch) == (kernel, arch):
            row = report.measure(variant)
            # double precision is there to check others; moments were not tuned on a device yet
            spilled = 512 if row["moments"] else 64 if row["dtype"] == "float64" else 0
            assert row["spilled_bytes"] <= spilled, row
            shared = 32 if row["moments"] else 20
            assert row["registers"] <= 255 and row["shared_bytes"] <= shared * 1024, row
            assert row["programs"] >= 2, row
            # the products with the radial functions are made by tensor cores
            assert (row["tensor_core_instructions"] > 0) == (kernel != "backward_source"), row
