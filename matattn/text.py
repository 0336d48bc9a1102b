"""Text with labelled spans: words, sentences, and how well spans were found.

A word is what the tokenizers take for one: a run without white space or punctuation, or a single
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
# UTF-8 that was read as Latin-1 or Windows-1252: "â€“" for a dash, "Â°" for a degree sign.
_MOJIBAKE = re.compile("â€[\x80-\xbf™œžŸ“”˜]|[ÂÎÏ][\x80-\xbf°±µ²³·]|Ã[\x80-\xbf©¨¼¶¤]|\ufffd")
_MOST_MOJIBAKE = 3  # of it in a file are still a slip of its authors


@dataclass(frozen=True)
class Sentence:
    """Words with labelled spans, which do not overlap within a type."""

    words: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    split: str = ""
    source: str = ""

    def of(self, types: Collection[str] | None = None) -> list[Span]:
        """Spans of some types (None: of all) that do not overlap: longer ones go first."""
        wanted = [span for span in self.spans if types is None or span[2] in types]
        kept: list[Span] = []
        for span in sorted(wanted, key=lambda s: (s[0] - s[1], s)):
            if all(span[1] <= other[0] or other[1] <= span[0] for other in kept):
                kept.append(span)
        return sorted(kept)


@dataclass(frozen=True)
class TextDataset:
    """A corpus of lines, and sentences with labelled spans and a split.

    ``material_types`` are the span types that name a material. Lines that share eight words in a
    row with a sentence of the validation or test split, or that are a shorter one, are not in the
    corpus. ``skipped`` has a message for each line or file that was left out.
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
        return [sentence for sentence in self.sentences if sentence.split == split]

    def types(self) -> list[str]:
        """Span types of the sentences, sorted."""
        return sorted({span[2] for sentence in self.sentences for span in sentence.spans})

    def fingerprint(self) -> str:
        """SHA-256 of lines, words, spans and split."""
        digest = hashlib.sha256()
        for line in self.corpus:
            digest.update(line.encode() + b"\n")
        for sentence in self.sentences:
            digest.update(repr((sentence.words, sentence.spans, sentence.split)).encode())
        return digest.hexdigest()


def parts(sentence: Sentence, longest: int, types: Collection[str] | None = None) -> list[Sentence]:
    """A sentence in parts of at most ``longest`` words, with its outermost spans.

    Parts end before a span that would be cut; one longer than a part goes on in the next.
    """
    spans, found = sentence.of(types), []
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
        found.append(Sentence(sentence.words[start:end], inside, sentence.split, sentence.source))
        start = end
    return found


def read_text(path: str | Path, may_be_empty: bool = False) -> str:
    """The text of a UTF-8 file, or pipe.

    Raises DataError for a file that is missing, empty, not UTF-8 (with the place), or full of
    mojibake, UTF-8 that something took for another encoding.
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
    """Raise DataError when a text is mojibake, naming the first line of it."""
    found = list(_MOJIBAKE.finditer(text))
    if len(found) > _MOST_MOJIBAKE:
        first = found[0]
        line = text.count("\n", 0, first.start()) + 1
        raise DataError(
            f"{where}:{line}: {first.group()!r} looks like UTF-8 read with another encoding "
            f"({len(found)} such places); repair it, for example with the package ftfy"
        )


def check_unicode(text: str, where: str) -> None:
    """Raise DataError for a text that cannot be written as UTF-8, naming its first such place."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start + 1} is U+{ord(text[error.start]):04X}, half a "
            "character or a byte that is not UTF-8; convert the text to UTF-8"
        ) from None


def split_words(text: str) -> list[tuple[str, int, int]]:
    """Words of a text with the places where they begin and end."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    pieces = BertPreTokenizer().pre_tokenize_str(text)
    return [(word, start, end) for word, (start, end) in pieces]


def from_labels(words: Sequence[str], labels: Sequence[str], where: str) -> list[Span]:
    """Spans of BIO labels ("B-MAT", "I-MAT", "O"); an I- after something else begins a span.

    Those of BIOES are read as BIO: S- as B-, E- as I-.
    Raises DataError, beginning with ``where``, when there are not as many labels as words, or for a
    label that is none.
    """
    if len(words) != len(labels):
        raise DataError(
            f"{where}: {len(words)} words and {len(labels)} labels; every word needs one"
        )
    spans: list[Span] = []
    for place, label in enumerate(labels):
        if label == "O":
            continue
        kind, dash, name = label.partition("-")
        if kind not in ("B", "I", "E", "S") or not dash or not name:
            raise DataError(
                f"{where}: label {label!r} of {words[place]!r} is not O, B-... or I-... (or E-..., "
                "S-... of BIOES)"
            )
        if kind in ("I", "E") and spans and spans[-1][1:] == (place, name):
            spans[-1] = (spans[-1][0], place + 1, name)
        else:
            spans.append((place, place + 1, name))
    return spans


def spans_of(labels: Sequence[str]) -> list[Span]:
    """Spans of BIO labels of our own, which are right."""
    return from_labels(labels, labels, "labels")


def to_labels(count: int, spans: Iterable[Span]) -> list[str]:
    """BIO labels of ``count`` words."""
    labels = ["O"] * count
    for start, end, name in spans:
        labels[start:end] = [f"B-{name}", *[f"I-{name}"] * (end - start - 1)]
    return labels


def resplit(words: Sequence[str], spans: Iterable[Span], split: str, source: str) -> Sentence:
    """A sentence whose given words are split further where ``split_words`` does; spans follow."""
    parts = [[part for part, _, _ in split_words(word)] for word in words]
    begin = [0]
    for part in parts:
        begin.append(begin[-1] + len(part))
    moved = ((begin[start], begin[end], name) for start, end, name in spans)
    kept = tuple(span for span in moved if span[0] < span[1])
    return Sentence(tuple(word for part in parts for word in part), kept, split, source)


@dataclass(frozen=True)
class Score:
    """Precision, recall and F1 of what was found."""

    correct: int
    found: int
    wanted: int

    @property
    def precision(self) -> float:
        return self.correct / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.correct / (self.found + self.wanted) if self.found + self.wanted else 0.0


def span_score(found: Iterable[Sequence[Span]], wanted: Iterable[Sequence[Span]]) -> Score:
    """Spans count as found when both ends and the type agree (micro-averaged, as CoNLL)."""
    correct = total_found = total_wanted = 0
    for ours, theirs in zip(found, wanted, strict=True):
        correct += len(set(ours) & set(theirs))
        total_found += len(set(ours))
        total_wanted += len(set(theirs))
    return Score(correct, total_found, total_wanted)


def word_score(found: Iterable[Sequence[Span]], wanted: Iterable[Sequence[Span]]) -> Score:
    """As ``span_score``, of the single words inside spans, whatever their type."""

    def words(spans: Sequence[Span]) -> list[Span]:
        return [(place, place + 1, "") for start, end, _ in spans for place in range(start, end)]

    return span_score(map(words, found), map(words, wanted))
