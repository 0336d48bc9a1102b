"""MatDetector: which words of a text name a material, and which are formulas."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from pymatgen.core import Element
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

LABELS = ("O", "B-name", "I-name", "B-formula", "I-formula")
LONGEST = 40  # characters of a word that the detector sees
CHARACTERS = 512  # rows of the table of characters: code points, modulo this
_SYMBOLS = "|".join(sorted((e.symbol for e in Element), key=len, reverse=True))
_FORMULA = re.compile(rf"(?:(?:{_SYMBOLS})[\d.xyzδ]*|[()\[\]\d.+\-−–xyzδ])+")
_SHAPES = 4


def is_formula(text: str) -> bool:
    """Whether a text is made of element symbols and numbers, with a digit or two elements at least.

    So "GaAs" and "Ti" are formulas; "I", "In" and "As", which are words as well, are not.
    """
    if not _FORMULA.fullmatch(text) or text in ("I", "In", "As", "At", "No", "He", "Be"):
        return False
    return bool(re.search(_SYMBOLS, text))


def shape(word: str) -> list[float]:
    """Features of a word's spelling: formula, capital first, capital later, digit."""
    return [
        float(is_formula(word)),
        float(word[:1].isupper()),
        float(any(character.isupper() for character in word[1:])),
        float(any(character.isdigit() for character in word)),
    ]


class MaterialDetector(nn.Module):
    r"""Probabilities of the five ``LABELS`` for every character of every word.

    Characters pass two convolutions; their maximum over a word, with four features of its spelling,
    is what a bidirectional LSTM reads along the sentence. Each character is then classified from
    its own convolution and its word's state, so that a word's probability can be read from its
    pieces in both ways (``matattn.models.matter_tokenizer.word_probability``).

    A stand-in for the fine-tuned MatBERT of MATTER (arXiv:2506.11115, 110 M parameters): it is
    trained from scratch and fits a laptop.

    Args:
        dim: channels of each of the two convolutions (widths 3 and 5).
        hidden: of the LSTM, in each direction.
        num_layers: of the LSTM.
    """

    def __init__(
        self, dim: int = 96, hidden: int = 128, num_layers: int = 2, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 32, padding_idx=0)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(32, dim, width, padding=width // 2) for width in (3, 5)
        )
        self.sentence = nn.LSTM(
            2 * dim + _SHAPES, hidden, num_layers, bidirectional=True, batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.word = nn.Linear(2 * hidden, dim)
        self.character = nn.Linear(2 * dim, dim)
        self.output = nn.Linear(dim, len(LABELS))

    def forward(
        self,
        characters: Int[Tensor, "words characters"],
        shapes: Float[Tensor, "words shapes"],
        lengths: Int[Tensor, " sentences"],
    ) -> Float[Tensor, "words characters labels"]:
        """Logits. ``lengths`` counts the words of each sentence, which stand one after another."""
        embedded = self.embedding(characters).transpose(1, 2)
        local = torch.cat([conv(embedded).relu() for conv in self.convolutions], 1)
        real = (characters > 0)[:, None]
        spelled = torch.cat([local.masked_fill(~real, 0.0).amax(2), shapes], 1)
        parts = self.dropout(spelled).split(lengths.tolist())
        padded = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
        packed = pack_padded_sequence(padded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.sentence(packed)[0], batch_first=True)
        place = torch.arange(states.shape[1], device=lengths.device)
        context = self.word(self.dropout(states[place < lengths[:, None]]))
        hidden = self.character(local.transpose(1, 2)) + context[:, None]
        return self.output(self.dropout(hidden.relu()))


def encode_words(
    sentences: Sequence[Sequence[str]],
) -> tuple[Tensor, Tensor, Tensor]:
    """``characters``, ``shapes`` and ``lengths`` of sentences (lists of words) for the network."""
    words = [word for sentence in sentences for word in sentence]
    width = min(max(map(len, words), default=1), LONGEST)
    characters = np.zeros((len(words), width), dtype=np.int64)
    for row, word in enumerate(words):
        for place, character in enumerate(word[:width]):
            characters[row, place] = ord(character) % (CHARACTERS - 1) + 1
    return (
        torch.from_numpy(characters),
        torch.tensor([shape(word) for word in words]),
        torch.tensor([len(sentence) for sentence in sentences]),
    )
