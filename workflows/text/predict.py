"""Use a saved model of text: pieces of a text, and the spans that its network finds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matattn import bundle, pretrained
from matattn.errors import BundleError
from matattn.extras import import_extra
from matattn.models.material_detector import encode_words
from matattn.models.matter_tokenizer import word_probability
from matattn.models.text_encoder import TokenClassifier
from matattn.runtime import on_cpu
from matattn.text import Sentence, Span, check_unicode, spans_of, split_words
from matattn.text_uncertainty import LabelSets
from matattn.uncertainty import FEWEST_ROWS

WINDOW = 128  # words that a network sees at once
MARGIN = 16  # words at the inner ends of a window, which the next window sees better
_BATCH = 64  # windows at once


@dataclass(frozen=True)
class Tagged:
    """A text with its pieces (piece, start, end) and spans (start, end, type, probability).

    Starts and ends count characters of the text. ``sets`` are types for each span, most probable
    first, that hold the true one in 90 % of the spans, "O" being none; empty for a model without
    calibration.
    """

    text: str
    pieces: list[tuple[str, int, int]]
    spans: list[tuple[int, int, str, float]]
    sets: list[tuple[str, ...]]


@dataclass(frozen=True)
class TextModel:
    """A tokenizer with the network beside it: ``matattn.load(folder).tokenize(texts)``."""

    network: nn.Module
    config: dict[str, Any]
    tokenizer: Any  # tokenizers.Tokenizer
    uncertainty: LabelSets | None = None

    @classmethod
    def load(cls, model: str | Path, device: str = "cpu") -> TextModel:
        """Load a model from its folder, on the CPU whatever ``device`` says.

        Raises BundleError, and ConfigError without ``tokenizers``.
        """
        folder = pretrained.find(model)
        if (kind := pretrained.kind(folder).name) != "text":
            raise BundleError(f"{folder}: this model reads {kind}, not text")
        (network,), config, uncertainty = bundle.load(folder)
        return cls(network, config, load_tokenizer(folder), uncertainty)

    def tokenize(self, texts: str | Iterable[str]) -> list[Tagged]:
        """Return pieces and spans of every text, of any length; raise DataError for no Unicode."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(texts, 1):
            check_unicode(text, f"text {number}")
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        words_of = [split_words(text) for text in texts]
        tagged = tag(self, [[word for word, _, _ in words] for words in words_of])
        result = []
        for text, encoding, words, (labels, chances, classes) in zip(
            texts, encoded, words_of, tagged, strict=True
        ):
            pieces = [(piece, *ends) for piece, ends in
                      zip(encoding.tokens, encoding.offsets, strict=True)]  # fmt: skip
            found = spans_of(labels)
            spans = [
                (words[a][1], words[b - 1][2], kind, float(np.mean(chances[a:b])))
                for a, b, kind in found
            ]
            result.append(Tagged(text, pieces, spans, self.sets(found, classes)))
        return result

    @property
    def types(self) -> list[str]:
        """Return the types of spans, and "O" for none of them."""
        return [*dict.fromkeys(label[2:] for label in self.config["labels"][1:]), "O"]

    def type_chances(self, span: Span, classes: Mapping[int, np.ndarray]) -> np.ndarray:
        """Return the probabilities [K] of the types of a span, means over its words."""
        labels, types = self.config["labels"], self.types
        owner = [types.index("O" if label == "O" else label[2:]) for label in labels]
        mean = np.mean([classes[word] for word in range(span[0], span[1])], axis=0)
        return np.bincount(owner, weights=mean, minlength=len(types))

    def sets(
        self, spans: Sequence[Span], classes: Mapping[int, np.ndarray]
    ) -> list[tuple[str, ...]]:
        """Return the types that may be the true one of each span; none without calibration."""
        if self.uncertainty is None or not spans:
            return []
        chances = np.stack([self.type_chances(span, classes) for span in spans])
        return [
            tuple(self.types[n] for n in np.argsort(-row, kind="stable") if is_in[n])
            for row, is_in in zip(chances, self.uncertainty.inside(chances), strict=True)
        ]


def load_tokenizer(folder: Path, name: str = "tokenizer.json") -> Any:
    """Load the tokenizer of a bundle whose sums were checked; raise BundleError without one.

    Names of special tokens, such as [MASK], are plain text for it.
    """
    tokenizers = import_extra("tokenizers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / name))
    except Exception as error:  # the library raises bare Exceptions
        raise BundleError(f"{folder}/{name}: cannot be read: {error}") from None
    tokenizer.encode_special_tokens = True  # not stored in the file
    return tokenizer


def find_spans(model: TextModel, sentences: Iterable[Sentence]) -> list[list[Span]]:
    """Return the spans that a model finds in every sentence."""
    tagged = tag(model, [sentence.words for sentence in sentences])
    return [spans_of(labels) for labels, _, _ in tagged]


def label_sets(model: TextModel, sentences: Sequence[Sentence]) -> LabelSets | None:
    """Return sets fitted to spans found in sentences that were not trained on, or None.

    There is none where the model finds spans in too few of them: those of one sentence are alike.
    """
    chances, true, owners = _typed(model, sentences)
    if len(set(owners)) < FEWEST_ROWS:
        return None
    return LabelSets.fit(np.stack(chances), true)


def coverage(model: TextModel, sentences: Sequence[Sentence]) -> dict[str, float]:
    """Return how many found spans have their true type in their set, and the sets' mean size."""
    chances, true, _ = _typed(model, sentences)
    if model.uncertainty is None or not true:
        return {}
    inside = model.uncertainty.inside(np.stack(chances))
    held = inside[np.arange(len(true)), true]
    return {"in_set": float(held.mean()), "size": float(inside.sum(1).mean()), "n": len(true)}


def _typed(
    model: TextModel, sentences: Sequence[Sentence]
) -> tuple[list[np.ndarray], list[int], list[int]]:
    """Return the probabilities [K] of the types of every span found, its true type and sentence."""
    chances, true, owners = [], [], []
    tagged = tag(model, [sentence.words for sentence in sentences])
    for number, (sentence, (labels, _, classes)) in enumerate(zip(sentences, tagged, strict=True)):
        wanted = {(start, end): kind for start, end, kind in sentence.spans}
        for span in spans_of(labels):
            chances.append(model.type_chances(span, classes))
            true.append(model.types.index(wanted.get(span[:2], "O")))
            owners.append(number)
    return chances, true, owners


def tag(
    model: TextModel, texts: Sequence[Sequence[str]]
) -> list[tuple[list[str], list[float], dict[int, np.ndarray]]]:
    """Return label and probability of every word of every text (a list of words).

    Beside them stand the probabilities of all labels [C] of the words inside spans, by number.
    """
    labels: list[str] = model.config["labels"]
    rule = model.config.get("word_probability", "paper")
    windows = [(row, *window) for row, cuts in enumerate(_windows(model, texts)) for window in cuts]
    tagged: list[tuple[list[str], list[float], dict[int, np.ndarray]]]
    tagged = [([""] * len(text), [0.0] * len(text), {}) for text in texts]
    order = sorted(windows, key=lambda window: window[2] - window[1])  # so less is padding
    for first in range(0, len(order), _BATCH):
        batch = order[first : first + _BATCH]
        chances = _probabilities(model, [texts[row][start:end] for row, start, end, *_ in batch])
        for (row, start, _, low, high), words in zip(batch, chances, strict=True):
            for word in range(low, high):
                label, chance = word_probability(words[word - start], rule)
                tagged[row][0][word] = labels[label]
                tagged[row][1][word] = chance
                if labels[label] != "O":
                    tagged[row][2][word] = words[word - start].mean(0)
    return tagged


def cut(sizes: Sequence[int], room: int = WINDOW) -> Iterator[tuple[int, int, int, int]]:
    """Yield windows over words: start, end, and the range of words that each answers for.

    A window has at most ``WINDOW`` words, which take up ``room`` at most; a word that takes up more
    ends its window. Margins are narrower where ``MARGIN`` words take up an eighth of the room.
    """
    ends = [0, *accumulate(sizes)]

    def before(word: int) -> int:
        return max(word - MARGIN, bisect_left(ends, ends[word] - room // 8))

    high, count = 0, len(sizes)
    while high < count:
        low, start = high, before(high)
        end = min(start + WINDOW, bisect_right(ends, ends[start] + room) - 1)
        end = max(end, low + 1)
        high = end if end == count else max(before(end), low + 1)
        yield start, end, low, high


def _windows(
    model: TextModel, texts: Sequence[Sequence[str]]
) -> list[Iterator[tuple[int, int, int, int]]]:
    """Return windows over the words of every text in which the network sees each of them."""
    if not isinstance(model.network, TokenClassifier):  # a detector sees whole words
        return [cut([1] * len(text)) for text in texts]
    encoded = model.tokenizer.encode_batch(
        [list(text) for text in texts], is_pretokenized=True, add_special_tokens=False
    )
    room = model.network.encoder.max_length - 2  # beside [CLS] and [SEP]
    pieces = (Counter(one.word_ids) for one in encoded)
    return [cut([n[word] for word in range(len(text))], room)
            for n, text in zip(pieces, texts, strict=True)]  # fmt: skip


def _probabilities(model: TextModel, texts: list[Sequence[str]]) -> list[list[np.ndarray]]:
    """Return the probabilities [n, C] of the n pieces of every word of every text."""
    with torch.no_grad(), on_cpu():
        if isinstance(model.network, TokenClassifier):
            return _piece_probabilities(model.network, model.tokenizer, texts)
        arguments = encode_words(texts)
        chances = model.network(**arguments).softmax(-1).numpy()
    owners = arguments["owners"]
    ends = np.cumsum(np.bincount(owners[owners >= 0], minlength=sum(map(len, texts))))
    words = iter(np.split(chances, ends[:-1]))
    return [[next(words) for _ in text] for text in texts]


def _piece_probabilities(
    network: TokenClassifier, tokenizer: Any, texts: list[Sequence[str]]
) -> list[list[np.ndarray]]:
    """Return the probabilities of every word's first piece; "O" for a word that has none."""
    ids, owners = encode_pieces(tokenizer, texts, network.encoder.max_length)
    chances = network(ids).softmax(-1).numpy()
    unseen = np.zeros((1, chances.shape[-1]))
    unseen[0, 0] = 1.0
    rows = []
    for row, text in enumerate(texts):
        first = {owner: index for index, owner in reversed(list(enumerate(owners[row])))}
        rows.append([chances[row, [first[n]]] if n in first else unseen for n in range(len(text))])
    return rows


def encode_pieces(
    tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int
) -> tuple[torch.Tensor, list[list[int]]]:
    """Return ids [B, L] of texts as words, with [CLS] and [SEP], and the word of every piece.

    Special tokens belong to word -1; texts beyond ``max_length`` pieces lose their end.
    """
    encoded = tokenizer.encode_batch([list(text) for text in texts], is_pretokenized=True)
    length = min(max(len(one.ids) for one in encoded), max_length)
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    owners = []
    for row, one in enumerate(encoded):
        ids[row, : len(one.ids)] = torch.tensor(one.ids[:length])
        owners.append([-1 if word is None else word for word in one.word_ids[:length]])
    return ids, owners
