"""Official formats of labelled materials text; each reader returns the sentences of one file."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matattn.errors import DataError
from matattn.text import (
    Sentence,
    Span,
    check_unicode,
    from_labels,
    read_text,
    resplit,
    split_words,
)


def read_mulms(path: Path, split: str) -> list[Sentence]:
    """Read MuLMS (Schrader et al. 2023), ``ne_deps_*.conllu``: number, word, ends of entities.

    ``7:MAT|6:MAT`` at word 8 means that two entities of type MAT end here, which begin at 7 and 6;
    entities may be nested.
    """
    sentences = []
    for line, block in _blocks(path, comment="#"):
        words, spans = [], []
        for offset, row in enumerate(block):
            columns = row.split("\t")
            if len(columns) != 3:
                raise DataError(f"{path}:{line + offset}: expected number, word and entities")
            words.append(columns[1])
            if columns[2] != "O":
                for entity in columns[2].split("|"):
                    start, _, kind = entity.partition(":")
                    if not _is_index(start) or not 1 <= int(start) <= len(words):
                        raise DataError(f"{path}:{line + offset}: not an entity: {entity!r}")
                    spans.append((int(start) - 1, len(words), kind))
        sentences.append(resplit(words, spans, split, path.name))
    return sentences


def read_conll(path: Path, split: str, skipped: list[str] | None = None) -> list[Sentence]:
    """Read lines of a word and its BIO label, with empty lines between sentences (MatScholar).

    A sentence is left out if the last field of a line is not a label (MatScholar's dev.txt has
    some); ``skipped`` gets a message. ``DataError`` is raised only if no sentence is left.
    """
    sentences, errors = [], []
    for line, block in _blocks(path):
        rows = [row.split() for row in block]
        try:
            if any(len(row) < 2 for row in rows):
                raise DataError(f"{path}:{line}: a line without a label; expected word and label")
            words = [row[0] for row in rows]
            spans = from_labels(words, [row[-1] for row in rows], f"{path}:{line}")
        except DataError as error:
            errors.append(error)
            continue
        sentences.append(resplit(words, spans, split, path.name))
    if not sentences:
        raise errors[0] if errors else DataError(f"{path}: holds no sentence")
    if errors and skipped is not None:
        count = len(errors) + len(sentences)
        skipped.append(f"{errors[0]}; skipped {len(errors)} of {count} sentences")
    return sentences


def read_json(path: Path, split: str) -> list[Sentence]:
    """Read JSON lines, one list, or MatSci-NLP's ``{"data": [...]}``, of objects with entities.

    An object has words (``tokens`` or ``words``) and BIO labels (``labels``, ``ner_tags``, ``tags``
    or ``token_labels``), or, as MatSci-NLP's synthesis_procedures.json and sc_comics.json (Song et
    al. 2023), a ``text`` with ``t_span_dict`` (indices of characters) and ``t_type_dict``. Its
    sofc_token.json is a table of ``columns``.
    """
    sentences = []
    for number, record in enumerate(_records(path), 1):
        where = f"{path}, record {number}"
        if isinstance(record, dict) and "t_span_dict" in record:
            sentences.append(_from_spans(record, where, split, path.name))
            continue
        words, labels = (_first(record, names) for names in (("tokens", "words"), _LABELS))
        if words is None or labels is None:
            raise DataError(f"{where}: expected lists 'tokens' and 'labels'")
        check_unicode(" ".join([*words, *labels]), where)
        sentences.append(resplit(words, from_labels(words, labels, where), split, path.name))
    return sentences


def _records(path: Path) -> list[Any]:
    """Read the objects of a JSON file."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: neither JSON nor JSON lines: {error}") from None
    records = content["data"] if isinstance(content, dict) and "data" in content else content
    if isinstance(content, dict) and isinstance(content.get("columns"), list):
        names = [str(name) for name in content["columns"]]
        rows = records if isinstance(records, list) else []
        return [
            dict(zip(names, row, strict=False)) if isinstance(row, list) else row for row in rows
        ]
    return records if isinstance(records, list) else [records]


_LABELS = ("labels", "ner_tags", "tags", "token_labels")


def _first(record: object, names: tuple[str, ...]) -> list[str] | None:
    fields = record if isinstance(record, dict) else {}
    lists = (fields[name] for name in names if isinstance(fields.get(name), list))
    return next(([str(item) for item in items] for items in lists), None)


def _from_spans(record: Mapping[str, Any], where: str, split: str, source: str) -> Sentence:
    """Read a text whose spans and types share names: {"T1": [0, 4]}, {"T1": "Material"}."""
    try:
        text, types = str(record["text"]), record["t_type_dict"]
        marks = [
            (int(start), int(end), str(types[name]))
            for name, (start, end) in record["t_span_dict"].items()
        ]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(
            f"{where}: expected 'text', 't_span_dict' and 't_type_dict' ({error})"
        ) from None
    check_unicode(" ".join([text, *(kind for *_, kind in marks)]), where)
    return from_characters(text, marks, split, source)


def read_brat(path: Path, split: str) -> list[Sentence]:
    """Read BRAT standoff: ``x.txt``, and ``x.ann`` whose T lines are spans of characters.

    This is the format of the synthesis procedures of Mysore et al. 2019
    (annotated-materials-syntheses). A line of the text is a sentence; a span over several lines, or
    in parts, is left out.
    """
    text = read_text(path)
    marks = []
    rows = read_text(path.with_suffix(".ann"), may_be_empty=True).split("\n")
    for number, row in enumerate(rows, 1):
        if not row.startswith("T"):
            continue
        fields = row.split("\t")[1].split(" ") if row.count("\t") >= 2 else []
        if len(fields) == 3 and _is_index(fields[1]) and _is_index(fields[2]):
            marks.append((int(fields[1]), int(fields[2]), fields[0]))
        elif ";" not in row:
            raise DataError(f"{path.with_suffix('.ann')}:{number}: not a span: {row!r}")
    sentences, start = [], 0
    for line in text.split("\n"):
        inside = [m for m in marks if start <= m[0] and m[1] <= start + len(line)]
        if line.strip():
            shifted = [(s - start, e - start, kind) for s, e, kind in inside]
            sentences.append(from_characters(line, shifted, split, path.name))
        start += len(line) + 1
    return sentences


def read_sofc(path: Path, split: str) -> list[Sentence]:
    """Read SOFC-Exp (Friedrich et al. 2020): ``texts/x.txt`` and its tables in ``annotations``."""
    name = path.stem.split("_")[-1]
    folder = path.parent.parent / "annotations"
    text = read_text(path)
    bounds = {row[0]: ends for row, ends in _rows(folder, "sentences", name, 4)}
    marks: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for row, (start, end) in _rows(folder, "entity_types_and_slots", name, 5):
        sentence, label = row[0], row[4]
        if label.startswith("B-"):
            marks[sentence].append((start, end, label[2:]))
        elif label.startswith("I-") and marks[sentence]:
            marks[sentence][-1] = (marks[sentence][-1][0], end, label[2:])
    return [
        from_characters(text[start:end], marks[sentence], split, path.name)
        for sentence, (start, end) in bounds.items()
        if text[start:end].strip()
    ]


def _rows(
    folder: Path, table: str, name: str, columns: int
) -> Iterator[tuple[list[str], tuple[int, int]]]:
    """Yield the rows of a table and their spans of characters, from columns 3 and 4."""
    path = folder / table / f"{name}.csv"
    lines = read_text(path).splitlines()
    for number, row in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
        if len(row) < columns or not (_is_index(row[2]) and _is_index(row[3])):
            raise DataError(f"{path}:{number}: expected {columns} columns, numbers in 3 and 4")
        yield row, (int(row[2]), int(row[3]))


def from_characters(
    text: str, marks: list[tuple[int, int, str]], split: str, source: str
) -> Sentence:
    """Make the sentence of a text from spans of characters, which are extended to whole words."""
    words = split_words(text)
    spans: list[Span] = []
    for start, end, kind in marks:
        inside = [n for n, (_, s, e) in enumerate(words) if s < end and start < e]
        if inside:
            spans.append((inside[0], inside[-1] + 1, kind))
    return Sentence(tuple(word for word, _, _ in words), tuple(spans), split, source)


def _is_index(text: str) -> bool:
    """Tell whether a text is an index that ``int`` reads; it raises at ² and at 5000 digits."""
    return text.isdecimal() and len(text) < 12


def _blocks(path: Path, comment: str = "-DOCSTART-") -> Iterator[tuple[int, list[str]]]:
    """Yield the first line's number and the lines of every block between empty lines.

    Lines that begin with ``comment`` are left out.
    """
    block: list[str] = []
    for number, row in enumerate([*read_text(path).split("\n"), ""], 1):
        if row.strip() and not row.startswith(comment):
            block.append(row.rstrip("\r"))
        elif block and not row.strip():
            yield number - len(block), block
            block = []


Reader = Callable[[Path, str, list[str]], list[Sentence]]


def _strict(reader: Callable[[Path, str], list[Sentence]]) -> Reader:
    """Give a reader that skips no sentence the signature of those that do."""
    return lambda path, split, skipped: reader(path, split)


READERS: Mapping[str, tuple[Reader, str]] = {
    "mulms": (_strict(read_mulms), "*.conllu"),
    "conll": (read_conll, "*.txt"),
    "json": (_strict(read_json), "*.json*"),
    "brat": (_strict(read_brat), "*.txt"),
    "sofc": (_strict(read_sofc), "*.txt"),
}


def read_corpus(path: Path) -> list[str]:
    """Read all lines with words of a text file, or of all ``.txt`` files of a folder."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no .txt file in this folder")
    lines = [line.strip() for file in files for line in read_text(file).splitlines()]
    return [line for line in lines if line]
