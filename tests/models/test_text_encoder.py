"""Encoders of text, and crystals read as text."""

import numpy as np
import pytest
import torch

from matattn.errors import StructureError
from matattn.models.text_encoder import (
    CrystalText,
    MaskedLanguageModel,
    TextEncoder,
    TokenClassifier,
)
from matattn.structures.crystal_text import represent
from matattn.testing import StructureContract, assert_close, random_crystal

SMALL = {"dim": 16, "num_heads": 2, "num_blocks": 2, "ffn_dim": 24}


class CrystalTextContract(StructureContract):
    network_class = CrystalText

    def samples(self):
        generator = np.random.default_rng(7)
        return [random_crystal(generator, atoms) for atoms in (1, 2, 5, 3)]

    # A text has coordinates of the sites, and lengths along the axes of the cell.
    test_translation = None

    def test_a_shift_by_lattice_vectors_changes_nothing(self):
        network, samples = self.network(), self.samples()
        moved = [s | {"pos": s["pos"] + s["cell"][0, 0] - s["cell"][0, 2]} for s in samples]
        assert_close(self.output(network, moved), self.output(network, samples))


class TestComposition(CrystalTextContract):
    arguments = SMALL | {"num_targets": 2}

    def test_sees_no_geometry(self):
        network, samples = self.network(), self.samples()
        stretched = [s | {"pos": 1.1 * s["pos"], "cell": 1.1 * s["cell"]} for s in samples]
        assert torch.equal(self.output(network, stretched), self.output(network, samples))


class TestCifP1(CrystalTextContract):
    arguments = SMALL | {"representation": "cif_p1", "numbers": "place_values"}

    def test_depends_on_the_order_of_sites(self):
        """What a network of geometry may not do, and a text cannot help."""
        network, sample = self.network(), self.samples()[2]
        order = torch.arange(len(sample["z"]) - 1, -1, -1)
        turned = sample | {"z": sample["z"][order], "pos": sample["pos"][order]}
        difference = self.output(network, [turned]) - self.output(network, [sample])
        assert difference.abs().max() > 1e-6


del CrystalTextContract, StructureContract  # pytest would run them


def test_text_is_that_of_the_crystal():
    sample = random_crystal(np.random.default_rng(0), 3)
    network = CrystalText(**SMALL, representation="atom_sequences")
    ids = network._tokens(sample["z"].numpy(), sample["pos"].numpy(), sample["cell"][0].numpy())
    from pymatgen.core import Structure

    structure = Structure(
        sample["cell"][0].numpy(), sample["z"].tolist(), sample["pos"].numpy(),
        coords_are_cartesian=True,
    )  # fmt: skip
    assert len(ids) == 1 + len(represent(structure, "atom_sequences").split())


def test_too_long_texts_are_refused():
    sample = random_crystal(np.random.default_rng(0), 4)
    network = CrystalText(**SMALL, representation="cif_p1", max_length=64)
    with pytest.raises(StructureError, match="tokens as cif_p1, and the network reads at most 64"):
        network.check(sample["z"], sample["pos"], sample["cell"])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"representation": "slices"}, "representation='slices': expected one of composition"),
        ({"numbers": "roman"}, "numbers='roman': expected one of digits, place_values"),
        ({"dim": 15}, "dim=15 is not a multiple of num_heads=2"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        CrystalText(**SMALL | wrong)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    encoder = TextEncoder(50, **SMALL, max_length=12).double().eval()
    ids = torch.randint(1, 50, (3, 8))
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], 1)
    with torch.no_grad():
        assert_close(encoder(padded)[:, :8], encoder(ids), 1e-12)


def test_position_matters():
    torch.manual_seed(0)
    encoder = TextEncoder(50, **SMALL).eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        turned = encoder(ids.flip(1)).flip(1)
        assert (encoder(ids) - turned).abs().max() > 1e-3


def test_masked_language_model_shares_its_embedding():
    torch.manual_seed(0)
    model = MaskedLanguageModel(TextEncoder(50, **SMALL))
    chosen = torch.tensor([[False, True, True], [True, False, False]])
    scores = model(torch.randint(1, 50, (2, 3)), chosen)
    assert scores.shape == (3, 50)
    names = [name for name, _ in model.named_parameters()]
    assert sum(p.numel() for p in model.parameters()) < 2 * 50 * 16 + 20_000
    assert names.count("encoder.embedding.weight") == 1


def test_token_classifier_learns():
    torch.manual_seed(0)
    network = TokenClassifier(20, 3, **SMALL, dropout=0.0)
    ids = torch.randint(1, 20, (16, 6))
    target = ids % 3
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(network(ids).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(ids).argmax(-1) == target).float().mean() > 0.95
