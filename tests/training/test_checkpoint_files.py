"""Checkpoints are whole, or refused with a hint."""

import pytest
import torch

from matattn.errors import TrainingError
from matattn.files import write_sealed
from matattn.training.checkpoint_files import AtomicCheckpoints, read


@pytest.fixture
def path(tmp_path):
    content = {"weights": torch.arange(3.0), "epoch": 4, "log": {"rows": [{"loss": 0.5}]}}
    AtomicCheckpoints().save_checkpoint(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_content_comes_back(path):
    content = AtomicCheckpoints().load_checkpoint(path)
    assert content["epoch"] == 4 and content["log"] == {"rows": [{"loss": 0.5}]}
    assert torch.equal(content["weights"], torch.arange(3.0))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
    ],
    ids=["cut off", "half", "empty", "one bit"],
)
def test_damage_is_told_with_a_way_out(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    message = "last.ckpt: cannot be read: its checksum is wrong or missing; restore it from a copy"
    with pytest.raises(TrainingError, match=message):
        read(path)


def test_a_failed_write_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        AtomicCheckpoints().save_checkpoint({"function": lambda: 0}, path)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_other_objects_are_refused(tmp_path):
    torch.save({"object": SystemExit}, tmp_path / "a.ckpt")
    write_sealed(tmp_path / "a.ckpt", (tmp_path / "a.ckpt").read_bytes())
    with pytest.raises(TrainingError, match="holds other objects than tensors, numbers and texts"):
        read(tmp_path / "a.ckpt")
