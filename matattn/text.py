"""Text with labelled spans: words, sentences, and scores of predicted spans.

A word is that of the tokenizers: characters without white space or punctuation, or a single
punctuation mark.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matattn.errors import DataError

Span = tuple[int, int, str]  # first word, one past the last word, type
SPLITS = ("train", "val", "test")
# UTF-8 that was decoded as Latin-1 or Windows-1252: "â€“" for a dash, "Â°" for a degree sign.
_MOJIBAKE = re.compile("â€[\x80-\xbf™œžŸ“”˜]|[ÂÎÏ][\x80-\xbf°±µ²³·]|Ã[\x80-\xbf©¨¼¶¤]|\ufffd")
_MOST_MOJIBAKE = 3  # in a file; so few are slips of its authors


@dataclass(frozen=True)
class Sentence:
    """Words with labelled spans, which do not overlap within a type."""

    words: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    split: str = ""
    source: str = ""

    def of(self, types: Collection[str] | None = None) -> list[Span]:
        """Return the spans of some types (None: of all) without overlaps: longer ones win."""
        spans = [span for span in self.spans if types is None or span[2] in types]
        kept: list[Span] = []
        for span in sorted(spans, key=lambda s: (s[0] - s[1], s)):
            if all(span[1] <= other[0] or other[1] <= span[0] for other in kept):
                kept.append(span)
        return sorted(kept)


@dataclass(frozen=True)
class TextDataset:
    """A corpus of lines, and sentences with labelled spans and a split.

    ``material_types`` are the span types that name a material. The corpus has no line that shares
    eight words in a row with a sentence of the validation or test split, or that is a shorter one
    of them. ``skipped`` has a message for each line or file that was left out.
    """

    name: str
    corpus: list[str]
    sentences: list[Sentence]
    material_types: tuple[str, ...]
    note: str
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not any(line.strip() for line in self.corpus):
            raise DataError(f"{self.name}: the corpus is empty")

    def of_split(self, split: str) -> list[Sentence]:
        """Return the sentences of a split."""
        return [sentence for sentence in self.sentences if sentence.split == split]

    def types(self) -> list[str]:
        """Return the span types of the sentences, sorted."""
        return sorted({span[2] for sentence in self.sentences for span in sentence.spans})

    def fingerprint(self) -> str:
        """Return the SHA-256 of lines, words, spans and split."""
        digest = hashlib.sha256()
        for line in self.corpus:
            digest.update(line.encode() + b"\n")
        for sentence in self.sentences:
            digest.update(repr((sentence.words, sentence.spans, sentence.split)).encode())
        return digest.hexdigest()


def parts(sentence: Sentence, longest: int, types: Collection[str] | None = None) -> list[Sentence]:
    """Return a sentence in parts of at most ``longest`` words, with its outermost spans.

    A part ends before a span that would be cut; a span longer than a part continues in the next.
    """
    spans, sentences = sentence.of(types), []
    start = 0
    while start < len(sentence.words):
        end = min(start + longest, len(sentence.words))
        cutting = [s for s, e, _ in spans if s < end < e and s > start]
        end = min([end, *cutting])
        inside = tuple(
            (max(s, start) - start, min(e, end) - start, kind)
            for s, e, kind in spans
            if s < end and start < e
        )
        words = sentence.words[start:end]
        sentences.append(Sentence(words, inside, sentence.split, sentence.source))
        start = end
    return sentences


def read_text(path: str | Path, may_be_empty: bool = False) -> str:
    """Return the text of a UTF-8 file or pipe.

    Raises DataError for a file that is missing, empty, not UTF-8 (with the line), or full of
    mojibake: UTF-8 that was decoded as something else.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; convert it, "
            f"for example: iconv -f latin1 -t utf-8 {path.name}"
        ) from None
    if not may_be_empty and not text.strip():
        raise DataError(f"{path}: the file is empty")
    check_encoding(text, str(path))
    return text


def check_encoding(text: str, where: str) -> None:
    """Raise DataError when a text is mojibake, naming its first such line."""
    matches = list(_MOJIBAKE.finditer(text))
    if len(matches) > _MOST_MOJIBAKE:
        first = matches[0]
        line = text.count("\n", 0, first.start()) + 1
        raise DataError(
            f"{where}:{line}: {first.group()!r} looks like UTF-8 read with another encoding "
            f"({len(matches)} such places); repair it, for example with the package ftfy"
        )


def check_unicode(text: str, where: str) -> None:
    """Raise DataError for a text that cannot be written as UTF-8, naming the character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start + 1} is U+{ord(text[error.start]):04X}, half a "
            "character or a byte that is not UTF-8; convert the text to UTF-8"
        ) from None


def split_words(text: str) -> list[tuple[str, int, int]]:
    """Return the words of a text, with the characters where they begin and end."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    pieces = BertPreTokenizer().pre_tokenize_str(text)
    return [(word, start, end) for word, (start, end) in pieces]


def from_labels(words: Sequence[str], labels: Sequence[str], where: str) -> list[Span]:
    """Return the spans of BIO labels ("B-MAT", "I-MAT", "O").

    An I- after something else begins a span. Labels of BIOES are read as BIO: S- as B-, E- as I-.
    Raises DataError, beginning with ``where``, for an unknown label, and when the numbers of labels
    and words differ.
    """
    if len(words) != len(labels):
        raise DataError(
            f"{where}: {len(words)} words and {len(labels)} labels; every word needs one"
        )
    spans: list[Span] = []
    for index, label in enumerate(labels):
        if label == "O":
            continue
        kind, dash, name = label.partition("-")
        if kind not in ("B", "I", "E", "S") or not dash or not name:
            raise DataError(
                f"{where}: label {label!r} of {words[index]!r} is not O, B-... or I-... (or E-..., "
                "S-... of BIOES)"
            )
        if kind in ("I", "E") and spans and spans[-1][1:] == (index, name):
            spans[-1] = (spans[-1][0], index + 1, name)
        else:
            spans.append((index, index + 1, name))
    return spans


def spans_of(labels: Sequence[str]) -> list[Span]:
    """Decode BIO labels that are known to be valid."""
    return from_labels(labels, labels, "labels")


def to_labels(count: int, spans: Iterable[Span]) -> list[str]:
    """Return the BIO labels of ``count`` words."""
    labels = ["O"] * count
    for start, end, name in spans:
        labels[start:end] = [f"B-{name}", *[f"I-{name}"] * (end - start - 1)]
    return labels


def resplit(words: Sequence[str], spans: Iterable[Span], split: str, source: str) -> Sentence:
    """Return a sentence of words that ``split_words`` splits further, with its spans moved."""
    parts = [[part for part, _, _ in split_words(word)] for word in words]
    begin = [0]
    for part in parts:
        begin.append(begin[-1] + len(part))
    moved = ((begin[start], begin[end], name) for start, end, name in spans)
    kept = tuple(span for span in moved if span[0] < span[1])
    return Sentence(tuple(word for part in parts for word in part), kept, split, source)


@dataclass(frozen=True)
class Score:
    """Precision, recall and F1 of predicted spans."""

    correct: int
    found: int  # predicted
    wanted: int  # labelled

    @property
    def precision(self) -> float:
        """Return the correct share of the predicted spans."""
        return self.correct / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Return the share of the labelled spans that was predicted."""
        return self.correct / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        """Return the harmonic mean of precision and recall."""
        return 2 * self.correct / (self.found + self.wanted) if self.found + self.wanted else 0.0


def span_score(predicted: Iterable[Sequence[Span]], labelled: Iterable[Sequence[Span]]) -> Score:
    """Score spans, whose ends and type must agree (micro-averaged, as in CoNLL)."""
    correct = found = wanted = 0
    for ours, theirs in zip(predicted, labelled, strict=True):
        correct += len(set(ours) & set(theirs))
        found += len(set(ours))
        wanted += len(set(theirs))
    return Score(correct, found, wanted)


def word_score(predicted: Iterable[Sequence[Span]], labelled: Iterable[Sequence[Span]]) -> Score:
    """Score the single words inside spans, whatever their type."""

    def words(spans: Sequence[Span]) -> list[Span]:
        return [(word, word + 1, "") for start, end, _ in spans for word in range(start, end)]

    return span_score(map(words, predicted), map(words, labelled))
