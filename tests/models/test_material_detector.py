"""The detector of materials: formulas, batches, words and characters."""

import pytest
import torch

from matattn.models.material_detector import (
    LABELS,
    LONGEST,
    MaterialDetector,
    encode_words,
    is_formula,
)

SENTENCES = [
    ["Films", "of", "LiNi0", ".", "8O2"],
    ["x"],
    ["germanium", "oxide", "β", "-", "Ga2O3", "x" * 300],
]


@pytest.mark.parametrize("text", "GaAs TiO2 Ti LiNi0.8Co0.2O2 (BaSr) La2-xSrxCuO4 8Co0".split())
def test_formulas(text):
    assert is_formula(text)


@pytest.mark.parametrize(
    "text", ["In", "I", "As", "glass", "oxide", "3", "0.8", "", "Carbon", "the"]
)
def test_words_that_are_no_formulas(text):
    assert not is_formula(text)


def test_no_text_takes_long():
    """A pattern with two ways to match a digit would take 2^40 steps here."""
    assert not is_formula("C1" * 40 + "q")


def network():
    torch.manual_seed(0)
    return MaterialDetector(dim=8, hidden=8).double().eval()


def logits(sentences):
    arguments = encode_words(sentences)
    arguments["shapes"] = arguments["shapes"].double()
    with torch.no_grad():
        return network()(**arguments), arguments["owners"]


def test_a_row_for_every_character():
    found, owners = logits(SENTENCES)
    sizes = [min(len(word), LONGEST) for sentence in SENTENCES for word in sentence]
    assert found.shape == (sum(sizes), len(LABELS))
    assert owners[owners >= 0].bincount().tolist() == sizes


def test_batch_equals_loop():
    together, _ = logits(SENTENCES)
    single = torch.cat([logits([sentence])[0] for sentence in SENTENCES])
    assert (together - single).abs().max() < 1e-12


def test_every_word_sees_its_sentence():
    first, _ = logits([["a", "b", "c"]])
    second, _ = logits([["a", "b", "d"]])
    assert (first[0] - second[0]).abs().max() > 1e-9


def test_size_fits_a_laptop():
    assert sum(p.numel() for p in MaterialDetector().parameters()) < 2_000_000
