"""Bundles made to hurt: refused in one line, quickly, and without their memory."""

import hashlib
import json
import shutil
import struct

import pytest
from safetensors.numpy import load_file, save_file

from matattn import bundle, pretrained
from matattn.errors import BundleError


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(pretrained.find("mp-band-gap"), tmp_path / "model")
    return tmp_path / "model"


def sign(folder):
    """Checksums of what the files hold now, as whoever made them would write them."""
    sums = folder / "SHA256SUMS"
    names = [line.split("  ")[1] for line in sums.read_text().splitlines()]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    sums.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        place = config["arguments"] if key in config["arguments"] or key == "_target_" else config
        place[key] = value
    path.write_text(json.dumps(config))
    sign(folder)


def test_tensor_larger_than_its_file(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"], header[name]["data_offsets"][1] = [50_000, 50_000], 10**10
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    sign(folder)
    with pytest.raises(BundleError, match="config.json and weights do not fit"):
        bundle.load(folder)


def test_weights_that_are_no_numbers(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(key for key, array in weights.items() if array.dtype.kind == "f")
    weights[name] = weights[name] * float("nan")
    save_file(weights, path)
    sign(folder)
    with pytest.raises(BundleError, match=f"{name} holds numbers that are not finite"):
        bundle.load(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"members": 10**9}, "members=1000000000: expected 1 to 100"),
        ({"members": "2"}, "members='2': expected 1 to 100"),
        ({"num_blocks": 3}, "config.json and weights do not fit"),
        ({"_target_": "builtins.open"}, "unexpected keyword argument '_target_'"),
        ({"network": "os.system"}, "unknown network 'os.system'"),
        ({"format": 2}, "this matattn reads format 1"),
    ],
)
def test_descriptions_that_lie(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(BundleError, match=message):
        bundle.load(folder)


@pytest.mark.parametrize("content", [100_000 * "[", "", "[]", "\x00"])
def test_descriptions_that_are_none(folder, content):
    (folder / "config.json").write_text(content)
    sign(folder)
    with pytest.raises(BundleError, match="config.json: "):
        bundle.load(folder)
