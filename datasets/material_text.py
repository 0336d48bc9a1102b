"""Materials text: corpora, and sentences in which materials are labelled.

``load_corpora`` reads the public corpora MuLMS, the Olivetti group's synthesis procedures, and
a plain corpus; ``load_files`` reads your own text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from matattn.datasets.text_formats import READERS, read_brat, read_corpus, read_mulms
from matattn.errors import ConfigError, DataError
from matattn.structures.dataset import group_split
from matattn.text import Sentence, TextDataset, split_words

MATERIAL_TYPES = ("MAT", "Material", "MATERIAL", "name", "formula")
# The split is a separate part of a file's name: train1, MuLMS's ne_deps_dev, papers.test.
_SPLIT = re.compile(r"(?:^|[_.\-])(train|dev|val|valid|test)\d*(?=[_.\-]|$)", re.IGNORECASE)
_OVERLAP = 8  # consecutive words that a corpus line must not share with a held-out sentence


def load_corpora(name: str, path: str, procedures: bool = True) -> TextDataset:
    """Read MuLMS (train, dev, test), the Olivetti procedures (train) and ``clean_corpus.txt``.

    ``path`` is the folder with ``mulms``, ``olivetti_synthesis`` and ``clean_corpus.txt``. Lines of
    the corpus that share eight consecutive words with a sentence of MuLMS's dev or test are left
    out. Without ``procedures``, the labelled sentences are those of MuLMS alone. Raises DataError
    when files are missing.
    """
    folder = Path(path)
    sentences: list[Sentence] = []
    for split, pattern in (("train", "train*"), ("val", "dev"), ("test", "test")):
        files = sorted(folder.glob(f"mulms/ne_deps_{pattern}.conllu"))
        if not files:
            raise DataError(
                f"{folder}/mulms/ne_deps_{pattern}.conllu: no such file; put the MuLMS corpus "
                "(github.com/boschresearch/mulms-az-codalab, CC BY-SA 4.0) there, or set "
                "MATATTN_DATA to the folder that holds text/mulms"
            )
        for file in files:
            sentences += read_mulms(file, split)
    for file in sorted(folder.glob("olivetti_synthesis/data/*.txt")) if procedures else ():
        sentences += read_brat(file, "train")
    lines = read_corpus(folder / "clean_corpus.txt")
    kept = without_held_out(lines, sentences)
    note = (
        f"{len(lines) - len(kept)} of {len(lines)} corpus lines share {_OVERLAP} consecutive words "
        "with MuLMS's dev or test sentences and were left out. Detector and encoder are small and "
        "trained from scratch: their scores do not compare with those of pretrained BERT models."
    )
    return TextDataset(name, kept, sentences, MATERIAL_TYPES, note)


def load_files(
    name: str,
    corpus: str | Sequence[str],
    labelled: str | Sequence[str],
    format: str = "conll",
    split_seed: int = 0,
    material_types: Sequence[str] = MATERIAL_TYPES,
) -> TextDataset:
    """Read your own text: a corpus (files or folders of ``.txt``), and labelled files.

    ``format`` is one of conll (word and BIO label), json, brat, mulms, sofc. A labelled file whose
    name has train, dev, val or test as a part belongs to that split; others are split 80/10/10 by a
    hash of ``split_seed`` and file name, or of the sentence when there is only one file.
    ``material_types`` are the span types that name a material. Raises ConfigError for an unknown
    format, and DataError when no labelled sentence or no span of these types is left.
    """
    if format not in READERS:
        raise ConfigError(f"data.format={format!r}: expected one of {', '.join(READERS)}")
    reader, pattern = READERS[format]
    files = [file for path in _listed(labelled) for file in _files(Path(path), pattern)]
    lines = [line for path in _listed(corpus) for line in read_corpus(Path(path))]
    sentences: list[Sentence] = []
    skipped: list[str] = []
    for file in files:
        try:
            sentences += reader(file, _split_of_name(file), skipped)
        except DataError as error:
            skipped.append(str(error))
    if not sentences:
        raise DataError(skipped[0] if skipped else f"{name}: no labelled sentence")
    sentences = _assign(sentences, split_seed, one_file=len(files) == 1)
    types = {span[2] for sentence in sentences for span in sentence.spans}
    if not types & set(material_types):
        raise DataError(
            f"{name}: no span of the types {', '.join(material_types)}; the files have "
            f"{', '.join(sorted(types)) or 'none'}: give data.material_types=[...]"
        )
    kept = without_held_out(lines, sentences)
    note = f"{len(lines) - len(kept)} of {len(lines)} corpus lines repeat held-out sentences."
    return TextDataset(name, kept, sentences, tuple(material_types), note, skipped)


def without_held_out(lines: Iterable[str], sentences: Iterable[Sentence]) -> list[str]:
    """Return the lines that repeat no sentence of validation and test.

    A line repeats a sentence if they share eight consecutive words or, where one of them has fewer,
    if they are equal.
    """
    held = {gram for s in sentences if s.split in ("val", "test") for gram in _grams(s.words)}
    kept = []
    for line in lines:
        words = [word for word, _, _ in split_words(line)]
        if held.isdisjoint(_grams(words)):
            kept.append(line)
    return kept


def _grams(words: Sequence[str]) -> list[int]:
    lowered = [word.lower() for word in words]
    last = max(len(lowered) - _OVERLAP, 0)
    return [hash(tuple(lowered[n : n + _OVERLAP])) for n in range(last + 1)] if lowered else []


def _assign(sentences: list[Sentence], seed: int, one_file: bool) -> list[Sentence]:
    groups = [" ".join(s.words) if one_file else s.source for s in sentences]
    drawn = group_split(groups, seed)
    return [
        Sentence(s.words, s.spans, s.split or str(split), s.source)
        for s, split in zip(sentences, drawn, strict=True)
    ]


def _split_of_name(file: Path) -> str:
    match = _SPLIT.search(file.stem)
    return {"dev": "val", "valid": "val"}.get(name := match[1].lower(), name) if match else ""


def _files(path: Path, pattern: str) -> list[Path]:
    files = sorted(path.rglob(pattern)) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no {pattern} in this folder")
    return files


def _listed(paths: str | Sequence[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)
