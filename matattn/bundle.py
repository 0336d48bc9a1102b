"""A trained model as a folder that can be published: weights, description, checksums.

``model.safetensors`` holds tensors only, ``config.json`` plain values, ``card.md`` is for people
and ``SHA256SUMS`` covers all of them. Loading checks the sums, never unpickles, and builds only
networks of ``conf/model`` and of installed packages. ``uncertainty.safetensors`` is there when the
model is calibrated.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from matattn import networks as registry
from matattn import plugins
from matattn.errors import BundleError
from matattn.files import sha256, write_bytes, write_json, write_text
from matattn.kinds import KINDS, kind_of
from matattn.runtime import plain_torch
from matattn.uncertainty import Calibrated

FORMAT = 1
ROOM = 2**30  # bytes: tables that a network makes, libraries that it loads
MOST_MEMBERS = 100  # networks of an ensemble
REQUIRED = ("format", "network", "arguments")
_FILES = ("model.safetensors", "config.json", "card.md")
_UNCERTAINTY = "uncertainty.safetensors"  # optional
_TOKENIZER = "tokenizer.json"  # of models of text
_TRAINING_ROWS = "training_rows.csv"  # optional: what novelty is measured from


def save(
    folder: str | Path,
    networks: nn.Module | Sequence[nn.Module],
    arguments: dict[str, Any],
    config: dict[str, Any],
    card: str,
    uncertainty: Calibrated | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a bundle; ``folder`` is replaced only when everything is written.

    ``networks`` is one network, or the members of an ensemble, and ``arguments`` are the
    constructor arguments (plain values) of each; ``config`` describes the model further (targets,
    units, normaliser, elements seen, metrics, ...). ``files`` are further files of text, for
    example a tokenizer.
    """
    content = dict(config)
    if isinstance(networks, nn.Module):
        name, weights = type(networks).__name__, networks.state_dict()
    else:
        name, weights = type(networks[0]).__name__, _together(networks).state_dict()
        content["members"] = len(networks)
    tensors = {"model.safetensors": weights}
    if uncertainty is not None:
        content["uncertainty"] = uncertainty.config()
        tensors[_UNCERTAINTY] = uncertainty.tensors()
    _write(Path(folder), name, arguments, content, card, tensors, files)


def save_arrays(
    folder: str | Path,
    network: str,
    arrays: Mapping[str, np.ndarray],
    arguments: dict[str, Any],
    config: dict[str, Any],
    card: str,
) -> None:
    """``save`` for a network of another library, given by its class name and weights."""
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    _write(Path(folder), network, arguments, config, card, {"model.safetensors": tensors})


def _write(
    folder: Path,
    network: str,
    arguments: dict[str, Any],
    config: dict[str, Any],
    card: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    files: Mapping[str, str] | None = None,
) -> None:
    if network not in registry.known():
        raise BundleError(f"{network} is not in the registry of networks (conf/model)")
    brought = registry.package(network)
    if brought is not None:
        config = config | {"package": {"name": brought.package, "version": brought.version}}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, content in tensors.items():
            write_bytes(partial / name, _safetensors(content))
        described = {"format": FORMAT, "network": network, "arguments": arguments, **config}
        write_json(partial / "config.json", described)
        write_text(partial / "card.md", card)
        for name, text in (files or {}).items():
            write_text(partial / name, text)
        names = dict.fromkeys([*_FILES, *tensors, *(files or {})])
        sums = "".join(f"{sha256(partial / name)}  {name}\n" for name in names)
        write_text(partial / "SHA256SUMS", sums)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})


def _together(networks: Sequence[nn.Module]) -> nn.Module:
    """Return the members of an ensemble as one module, with the names of its weights."""
    return nn.ModuleDict({"members": nn.ModuleList(networks)})


@plain_torch()
def load(folder: str | Path) -> tuple[list[nn.Module], dict[str, Any], Any]:
    """Return the networks of a bundle, in evaluation mode, its config, and its uncertainty.

    There are several networks only if it holds an ensemble. Raises BundleError naming the folder
    and the file when something is missing, damaged or unknown.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    config = describe(folder)
    name = config["network"]
    network_class = registry.find(name)
    if (kind := kind_of(config).name) != getattr(network_class, "kind", ""):
        raise BundleError(f"{folder}/config.json: kind {kind!r} does not fit the network {name}")
    if not issubclass(network_class, nn.Module):
        raise BundleError(f"{folder}: a {name} is no torch network; matattn.load reads it")
    uncertainty = None
    try:
        count = config.get("members", 1)
        if not isinstance(count, int) or not 1 <= count <= MOST_MEMBERS:
            raise ValueError(f"members={count!r}: expected 1 to {MOST_MEMBERS}")
        weights = load_file(folder / "model.safetensors")
        _check_finite(weights)
        with _memory_for(sum(tensor.nbytes for tensor in weights.values())):
            networks = [network_class(**config["arguments"]) for _ in range(count)]
        whole = _together(networks) if "members" in config else networks[0]
        whole.load_state_dict(weights)
        if "uncertainty" in config:
            tensors = load_file(folder / _UNCERTAINTY)
            uncertainty = kind_of(config).calibrated(config["uncertainty"], tensors)
    except (TypeError, ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split()) + _other_version(config)
        raise BundleError(f"{folder}: config.json and weights do not fit: {reason}") from error
    return [network.eval() for network in networks], config, uncertainty


def _other_version(config: Mapping[str, Any]) -> str:
    """Return a remark if the network's package had another version when the bundle was written."""
    brought, written = registry.package(config["network"]), plugins.described(config.get("package"))
    if brought is None or written == str(brought):
        return ""
    return f" (written with {written}; {brought} is installed)"


def load_arrays(folder: str | Path) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """Return class name, config and weights of a bundle that ``save_arrays`` wrote.

    Raises BundleError as ``load`` does.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    config = describe(folder)
    try:
        weights = load_file(folder / "model.safetensors")
        _check_finite({name: torch.from_numpy(array) for name, array in weights.items()})
        return config["network"], config, weights
    except (ValueError, OSError, SafetensorError) as error:
        raise BundleError(f"{folder}/model.safetensors: cannot be read: {error}") from error


@contextmanager
def _memory_for(needed: int) -> Iterator[None]:
    """Let a block take at most twice as many bytes, and ``ROOM``; then it raises an error.

    The network that a hostile config.json describes would take what there is. Linux only.
    """
    if platform.system() != "Linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2 * needed + ROOM
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    except MemoryError:
        raise ValueError("the network would be much larger than its weights") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")


def describe(folder: str | Path) -> dict[str, Any]:
    """Return the config of a bundle; raises BundleError unless it is whole and known."""
    folder = Path(folder)
    _verify(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder}/config.json: cannot be read: {error}") from error
    described = config if isinstance(config, dict) else {}
    try:
        kind = kind_of(described)
    except KeyError as error:
        known = ", ".join(KINDS)
        raise BundleError(f"{folder}/config.json: unknown kind {error}; known: {known}") from None
    required = (*REQUIRED, *kind.bundle_keys)
    if missing := [key for key in required if key not in described]:
        raise BundleError(f"{folder}/config.json: lacks {', '.join(missing)}")
    if config["format"] != FORMAT:
        raise BundleError(
            f"{folder}: format {config['format']!r}; this matattn reads format {FORMAT}"
        )
    if not isinstance(config["arguments"], dict):
        raise BundleError(f"{folder}/config.json: arguments is no object with names and values")
    try:
        registry.check(str(config["network"]), config.get("package"))
    except BundleError as error:
        raise BundleError(f"{folder}/config.json: {error}") from None
    return config


def fingerprint(folder: str | Path) -> str:
    """Return the SHA-256 of a bundle's checksums, which tells models apart."""
    return sha256(Path(folder) / "SHA256SUMS")


def _verify(folder: Path) -> None:
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; give the model/ folder of a finished run")
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        hint = f"; did you mean {folder / 'model'}?" if (folder / "model").is_dir() else ""
        raise BundleError(f"{folder}: not a model bundle (SHA256SUMS is missing){hint}")
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = (line.partition(" ") for line in lines)
    expected = {name.strip(): digest for digest, _, name in parts}
    for name in expected:
        if Path(name).name != name:
            raise BundleError(f"{sums}: {name!r} is no file name; the file is damaged")
    optional = [
        name for name in (_UNCERTAINTY, _TOKENIZER, _TRAINING_ROWS) if (folder / name).exists()
    ]
    for name in dict.fromkeys([*_FILES, *expected, *optional]):
        if name not in expected or not (folder / name).is_file():
            raise BundleError(
                f"{folder}/{name}: missing here or in SHA256SUMS; copy the whole folder again"
            )
        if sha256(folder / name) != expected[name]:
            raise BundleError(
                f"{folder}/{name}: checksum differs from SHA256SUMS; the file is damaged"
            )
