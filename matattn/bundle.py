"""A trained model as a folder that can be published: weights, description, checksums.

``model.safetensors`` holds tensors only, ``config.json`` plain values, ``card.md`` is for people
and ``SHA256SUMS`` covers all of them. Loading checks the sums, never unpickles, and builds only
networks named in ``NETWORKS``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from matattn.errors import BundleError
from matattn.files import write_json, write_text

NETWORKS = {"Crystalformer": "matattn.models.crystalformer"}
FORMAT = 1
REQUIRED = ("format", "network", "arguments", "targets", "normaliser", "elements")
_FILES = ("model.safetensors", "config.json", "card.md")


def save(
    folder: str | Path,
    network: nn.Module,
    arguments: dict[str, Any],
    config: dict[str, Any],
    card: str,
) -> None:
    """Write a bundle; ``folder`` is replaced only when everything is written.

    ``arguments`` are the constructor arguments of ``network`` (plain values); ``config`` describes
    the model further (targets, units, normaliser, elements seen, metrics, ...).
    """
    from safetensors.torch import save_file

    name = type(network).__name__
    if name not in NETWORKS:
        raise BundleError(f"{name} is not in the registry of networks (matattn/bundle.py)")
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = {
        key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()
    }
    save_file(state, partial / "model.safetensors")
    (partial / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
    content = {"format": FORMAT, "network": name, "arguments": arguments, **config}
    write_json(partial / "config.json", content)
    write_text(partial / "card.md", card)
    sums = "".join(f"{_sha256(partial / name)}  {name}\n" for name in _FILES)
    write_text(partial / "SHA256SUMS", sums)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def load(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a bundle, in evaluation mode, and its config.

    Raises BundleError naming the folder and the file when something is missing, damaged or unknown.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    _verify(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{folder}/config.json: cannot be read: {error}") from error
    if missing := [key for key in REQUIRED if key not in config]:
        raise BundleError(f"{folder}/config.json: lacks {', '.join(missing)}")
    if config["format"] != FORMAT:
        raise BundleError(
            f"{folder}: format {config['format']!r}; this matattn reads format {FORMAT}"
        )
    name = config["network"]
    if name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise BundleError(f"{folder}/config.json: unknown network {name!r}; known: {known}")
    network_class = getattr(importlib.import_module(NETWORKS[name]), name)
    try:
        network = network_class(**config["arguments"])
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{folder}: config.json and weights do not fit: {reason}") from error
    return network.eval(), config


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
    for name in _FILES:
        if name not in expected or not (folder / name).is_file():
            raise BundleError(f"{folder}/{name}: missing; copy the whole folder again")
        if _sha256(folder / name) != expected[name]:
            raise BundleError(
                f"{folder}/{name}: checksum differs from SHA256SUMS; the file is damaged"
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
