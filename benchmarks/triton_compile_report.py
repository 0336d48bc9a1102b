"""What the compiler makes of the Triton kernels, for GPUs that need not be there.

    python benchmarks/triton_compile_report.py --output benchmarks/results/triton_compile.csv
    python benchmarks/triton_compile_report.py --operator low_rank_routing \
        --output benchmarks/results/triton_compile_routing.csv

Compiles every kernel of ``kernels/<operator>/triton_kernels.py`` ahead of time and counts
registers of a thread, bytes of spilled registers and of shared memory, and in the machine code the
tensor-core instructions and all instructions. ``programs`` is how many programs fit on a
multiprocessor at a time. Nothing is run or timed.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from matattn.kernels.low_rank_routing import triton_kernels as routing_kernels
from matattn.kernels.low_rank_routing import triton_ops as routing_ops
from matattn.kernels.periodic_attention import triton_kernels
from matattn.kernels.periodic_attention.triton_ops import launch_options
from matattn.kernels.precision import accumulator

NETWORKS = {"published": (8, 16, 64), "small": (4, 16, 64)}  # H, D, K
MOMENTS = (2, 16)  # C, F of model=crystalformer_angular
OF_MOMENTS = ("u", "u_weight", "table", "m", "grad_m", "sent", "grad_u", "grad_u_weight",
              "grad_table")  # fmt: skip
RADIAL = 14 / 64  # spacing and width, Å
REGISTERS = 65536  # of a multiprocessor
SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024}  # bytes of a multiprocessor
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}
INTEGERS = {"source", "row_ptr", "target", "by_source", "source_ptr", "items", "item_ptr"}
LIKE_Q = {"q", "second", "k", "v", "a", "y", "grad_y", "grad_q", "grad_k", "grad_v", "grad_a"}
LIKE_Q |= {"bias", "u", "u_weight", "table", "grad_u"}
ROUTING_KERNELS = ("encode", "decode", "latent_gradient", "query_gradients", "token_gradients")


@dataclass(frozen=True)
class Variant:
    """One kernel as it is compiled for one kind of call."""

    kernel: str
    arch: int  # compute capability, 80 or 90
    dtype: torch.dtype
    network: str
    bias: str = "none"  # "none", "edge" [E] or "heads" [E, H]
    distance_grad: bool = False
    moments: bool = False


def variants() -> Iterator[Variant]:
    """All kernels in single precision and bfloat16; in double precision the largest of each."""
    for arch, dtype, network in product(SHARED_MEMORY, (torch.float32, torch.bfloat16), NETWORKS):
        for bias in ("none", "edge", "heads"):
            yield Variant("forward", arch, dtype, network, bias)
            yield Variant("backward_target", arch, dtype, network, bias)
            yield Variant("backward_target", arch, dtype, network, bias, distance_grad=True)
        yield Variant("backward_source", arch, dtype, network)
        yield Variant("forward", arch, dtype, network, "edge", moments=True)
        yield Variant("backward_target", arch, dtype, network, "edge", moments=True)
        yield Variant("backward_target", arch, dtype, network, "none", True, moments=True)
        yield Variant("backward_source", arch, dtype, network, moments=True)
    for arch in SHARED_MEMORY:
        yield Variant("forward", arch, torch.float64, "published", "heads")
        yield Variant("backward_target", arch, torch.float64, "published", "heads", True)
        yield Variant("backward_source", arch, torch.float64, "published")


@dataclass(frozen=True)
class RoutingVariant:
    """One kernel of low-rank routing as it is compiled for one kind of call."""

    kernel: str
    arch: int
    dtype: torch.dtype
    dim: int
    latents: int
    separate: bool = False  # whether decoding has queries of its own


def routing_variants() -> Iterator[RoutingVariant]:
    """All kernels, with latents in several tiles and, where that differs, in one."""
    heads = [(torch.float32, dim) for dim in (8, 32, 64)]
    heads += [(torch.bfloat16, 8), (torch.bfloat16, 64), (torch.float16, 32)]
    for arch, (dtype, dim), kernel in product(SHARED_MEMORY, heads, ROUTING_KERNELS):
        yield RoutingVariant(kernel, arch, dtype, dim, 256)
        if kernel == "token_gradients":
            yield RoutingVariant(kernel, arch, dtype, dim, 256, separate=True)
        if kernel == "query_gradients":
            yield RoutingVariant(kernel, arch, dtype, dim, 64)
            yield RoutingVariant(kernel, arch, dtype, dim, 64, separate=True)


def measure_routing(variant: RoutingVariant) -> dict[str, str | int]:
    """Compile one variant of low-rank routing: its row of the table."""
    constants = routing_ops.launch_options(
        variant.kernel, variant.dtype, variant.latents, variant.dim, variant.separate
    )
    constants |= {"H": 8, "SCALE": 1.0, "BATCHED": False, "SEPARATE": variant.separate}
    if not variant.separate:
        constants |= {"second": None, "part_second": None}
    return {
        "kernel": variant.kernel,
        "arch": f"sm_{variant.arch}",
        "dtype": str(variant.dtype).removeprefix("torch."),
        "dim": variant.dim,
        "latents": variant.latents,
        "separate": int(variant.separate),
        "whole": int(constants.get("WHOLE", False)),
        "latents_x_tokens": f"{constants['LATENTS']}x{constants['TOKENS']}",
        **compiled(
            getattr(routing_kernels, variant.kernel), variant.arch, variant.dtype, constants
        ),
    }


def measure(variant: Variant) -> dict[str, str | int]:
    """Compile one variant: its row of the table."""
    heads, dim, count = NETWORKS[variant.network]
    bias_heads = {"none": 0, "edge": 1, "heads": heads}[variant.bias]
    constants = launch_options(
        variant.kernel, variant.dtype, heads, dim, count, RADIAL, RADIAL, bias_heads,
        *(MOMENTS if variant.moments else (0, 0)), variant.distance_grad,
        variant.moments and variant.distance_grad,
    )  # fmt: skip
    if bias_heads == 0:
        constants["bias"] = None
    if not variant.moments:
        constants |= dict.fromkeys(OF_MOMENTS)
    if not variant.distance_grad:
        constants |= {"grad_distance": None, "grad_table": None}
    return {
        "kernel": variant.kernel,
        "arch": f"sm_{variant.arch}",
        "dtype": str(variant.dtype).removeprefix("torch."),
        "network": variant.network,
        "bias": variant.bias,
        "distance_grad": int(variant.distance_grad),
        "moments": int(variant.moments),
        "heads_x_block": f"{constants['HEADS']}x{constants['BLOCK']}",
        **compiled(getattr(triton_kernels, variant.kernel), variant.arch, variant.dtype, constants),
    }


def compiled(
    kernel: Any, arch: int, dtype: torch.dtype, options: dict[str, Any]
) -> dict[str, str | int]:
    """What the compiler makes of a kernel for tensors of ``dtype``."""
    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        like = dtype if name in LIKE_Q else accumulator(dtype)
        signature[name] = "*i64" if name in INTEGERS else POINTERS[like]
        aligned[index,] = [["tt.divisibility", 16]]  # PyTorch's allocations are
    warps, stages = options["num_warps"], options["num_stages"]
    machine_code = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
    )
    registers, spilled = _resources(machine_code.asm["cubin"])
    shared = machine_code.metadata.shared
    code = machine_code.asm["sass"]
    return {
        "warps": warps,
        "stages": stages,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": shared,
        "programs": min(
            REGISTERS // (registers * 32 * warps), SHARED_MEMORY[arch] // (shared + 1024)
        ),
        "tensor_core_instructions": len(re.findall(r"\b(?:H|D|HG)MMA\b", code)),
        "instructions": len(re.findall(r";\s*$", code, re.MULTILINE)),
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of stack: where registers are spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        output = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", output))
    return int(numbers["REG"]), int(numbers["STACK"]) + int(numbers["LOCAL"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument("--output", type=Path, required=True)
    operators = ("periodic_attention", "low_rank_routing")
    parser.add_argument("--operator", choices=operators, default=operators[0])
    arguments = parser.parse_args()
    path: Path = arguments.output
    if arguments.operator == "low_rank_routing":
        rows = [measure_routing(variant) for variant in routing_variants()]
    else:
        rows = [measure(variant) for variant in variants()]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} variants, Triton {triton.__version__}: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
