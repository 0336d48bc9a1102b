"""MatDetector: a network that finds names of materials and formulas among the words of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from matattn.structures.crystal_text import SYMBOLS

LABELS = ("O", "B-name", "I-name", "B-formula", "I-formula")
LONGEST = 40  # characters of a word that the detector sees
CHARACTERS = 512  # rows of the table of characters: code points, modulo this
# Each character has one way to match, and the quantifier is possessive: time is linear in length.
_FORMULA = re.compile(rf"(?:{SYMBOLS}|[()\[\]\d.+\-−–xyzδ])++")
_SHAPES = 4
_GAP = [0, 0]  # half the width of the wider convolution


def is_formula(text: str) -> bool:
    """Return whether a text has only element symbols, numbers and brackets, and a symbol at least.

    "GaAs" and "Ti" are formulas; "I", "In" and "As", which are words as well, are not.
    """
    if not _FORMULA.fullmatch(text) or text in ("I", "In", "As", "At", "No", "He", "Be"):
        return False
    return bool(re.search(SYMBOLS, text))


def shape(word: str) -> list[float]:
    """Return features of a word's spelling: formula, capital first, capital later, digit."""
    return [
        float(is_formula(word)),
        float(word[:1].isupper()),
        float(any(character.isupper() for character in word[1:])),
        float(any(character.isdigit() for character in word)),
    ]


class MaterialDetector(nn.Module):
    r"""A network for logits of the five ``LABELS`` at every character of every word.

    Characters pass two convolutions. A bidirectional LSTM reads their maximum over each word, with
    four features of its spelling, along the sentence. Each character is then classified from its
    own convolution and its word's state, so that both rules for a word's probability apply to its
    pieces (``matattn.models.matter_tokenizer.word_probability``).

    It replaces the fine-tuned MatBERT of MATTER (arXiv:2506.11115, 110 M parameters): it is trained
    from scratch and fits a laptop.

    Args:
        dim: channels of each of the two convolutions (widths 3 and 5).
        hidden: size of the LSTM's state, in each direction.
        num_layers: layers of the LSTM.
        dropout: probability of dropout.
    """

    kind = "text"
    citations = ("matter",)

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
        characters: Int[Tensor, " positions"],
        owners: Int[Tensor, " positions"],
        shapes: Float[Tensor, "words shapes"],
        lengths: Int[Tensor, " sentences"],
    ) -> Float[Tensor, "characters labels"]:
        """Return logits of all characters except gaps; ``encode_words`` makes the arguments."""
        embedded = self.embedding(characters).T[None]
        local = torch.cat([conv(embedded).relu() for conv in self.convolutions], 1)[0].T
        real = owners >= 0
        local, owner = local[real], owners[real]
        spelled = local.new_zeros(len(shapes), local.shape[1])
        index = owner[:, None].expand_as(local)
        spelled = spelled.scatter_reduce(0, index, local, "amax")  # after relu, so from 0 on
        words = self.dropout(torch.cat([spelled, shapes], 1))
        padded = pad_sequence(list(words.split(lengths.tolist())), batch_first=True)
        packed = pack_padded_sequence(padded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.sentence(packed)[0], batch_first=True)
        position = torch.arange(states.shape[1], device=lengths.device)
        context = self.word(self.dropout(states[position < lengths[:, None]]))
        hidden = self.character(local) + context[owner]
        return self.output(self.dropout(hidden.relu()))


def encode_words(sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """Encode sentences (lists of words) as the network's arguments.

    ``characters`` [P] holds those of all words in order, with a gap of two zeros behind each word.
    ``owners`` [P] is the word of each position (-1: gap), ``shapes`` [W, 4] the spelling of each
    word and ``lengths`` [S] the number of words of each sentence.
    """
    words = [word for sentence in sentences for word in sentence]
    characters: list[int] = []
    owners: list[int] = []
    for number, word in enumerate(words):
        start = word[:LONGEST]
        characters += [ord(character) % (CHARACTERS - 1) + 1 for character in start]
        characters += _GAP
        owners += [number] * len(start) + [-1] * len(_GAP)
    return {
        "characters": torch.tensor(characters),
        "owners": torch.tensor(owners),
        "shapes": torch.tensor([shape(word) for word in words], dtype=torch.float32),
        "lengths": torch.tensor([len(sentence) for sentence in sentences]),
    }
