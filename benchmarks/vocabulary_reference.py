"""MATTER's tables and vocabularies beside those of the authors' code.

    python benchmarks/vocabulary_reference.py FOLDER [--orders 300]

FOLDER holds ``inputs`` (what a detector found: mf.csv, matname.csv, o_tags.txt) and, for each
lambda, a folder ``l..._v...`` with what the authors' pipeline makes of them: three tables of
frequencies and ``vocab.txt``. The tables must be equal. The vocabularies cannot: Hugging Face's
trainer breaks ties in the order of a hash map. So ours is trained with the pieces inside words in
``--orders`` random orders; what all orders keep must be in the reference, and what is in it must be
kept by one of them.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from pathlib import Path
from unittest import mock

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from matattn.models import matter_tokenizer
from matattn.models.matter_tokenizer import WordCounts, train_vocabulary

spell = matter_tokenizer._spell


def table(path: Path) -> dict[str, list[list[str]]]:
    """Rows of a CSV or tab-separated file without its header, by word."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    if "," not in lines[0]:
        rows = [line.split("\t") for line in lines]
    else:
        rows = list(csv.reader(lines))
    found: dict[str, list[list[str]]] = {}
    for word, *rest in rows:
        found.setdefault(word, []).append(rest)
    return found


def read(folder: Path) -> WordCounts:
    counts = WordCounts()
    for name in ("mf.csv", "matname.csv"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines()[1:]:
            word, probability = line.split("\t")
            counts.add(word.lower(), float(probability))
    for line in (folder / "o_tags.txt").read_text(encoding="utf-8").splitlines():
        for word in line.lower().split():
            counts.add(word)
    return counts


def largest_difference(counts: WordCounts, folder: Path, strength: float) -> float:
    """Between our three tables and those in ``folder``; words must be the same."""
    material = table(folder / "matterm_word_frequent.csv")
    general = table(folder / "o_word_frequent.csv")
    assert material.keys() == counts.material.keys(), "materials"
    assert general.keys() == counts.general.keys(), "other words"
    (adjusted,) = (table(path) for path in folder.glob("adjusted_frequency_*.csv"))
    differences = [abs(int(general[word][0][0]) - count) for word, count in counts.general.items()]
    for word, count in counts.material.items():
        ((frequency, probability),) = material[word]
        lifted = matter_tokenizer.adjusted_frequency(count, counts.probability(word), strength)
        (theirs,) = (float(row[-1]) for row in adjusted[word] if row[0] == "material term")
        differences += [abs(int(frequency) - count), abs(lifted - theirs)]
        differences.append(abs(float(probability) - counts.probability(word)))
    return max(differences)


def repetitions(counts: WordCounts, strength: float) -> dict[str, int]:
    """Words as the authors' code repeats them: the two counts of a word are rounded one by one, and
    words are cut as BERT does, without the normalisation that makes 2 of ₂ in ours."""
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    repeated = dict(counts.general)
    for word, count in counts.material.items():
        lifted = matter_tokenizer.adjusted_frequency(count, counts.probability(word), strength)
        repeated[word] = repeated.get(word, 0) + round(lifted)
    found: dict[str, int] = {}
    for word, times in repeated.items():
        for part, _ in splitter.pre_tokenize_str(normalizer.normalize_str(word)):
            found[part] = found.get(part, 0) + times
    return found


def in_random_order(order: random.Random):
    """``_spell`` with the pieces inside words numbered as shuffled words show them."""

    def spelled(words, weights, limit):
        numbers = list(range(len(words)))
        order.shuffle(numbers)
        pieces, ids, found = spell(
            [words[n] for n in numbers], [weights[n] for n in numbers], limit
        )
        back = dict(zip(numbers, found, strict=True))
        return pieces, ids, [back[n] for n in range(len(words))]

    return mock.patch.object(matter_tokenizer, "_spell", spelled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--orders", type=int, default=300)
    given = parser.parse_args()
    counts = read(given.folder / "inputs")
    print("| lambda | pieces | largest difference of the tables | always | ever | in between |")
    print("|---|---|---|---|---|---|")
    for folder in sorted(given.folder.glob("l*_v*")):
        digits, size = re.fullmatch(r"l(\d+)_v(\d+)", folder.name).groups()
        strength = float(digits) / 10 ** (len(digits) - 1)
        difference = largest_difference(counts, folder, strength)
        words = repetitions(counts, strength)
        reference = set((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
        vocabularies = []
        for seed in range(given.orders):
            with in_random_order(random.Random(seed)):
                vocabularies.append(set(train_vocabulary(words, int(size)).pieces))
        always, ever = set.intersection(*vocabularies), set.union(*vocabularies)
        between = always <= reference <= ever
        cells = (f"{strength:g}", size, f"{difference:.1e}", len(always), len(ever), between)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if not between:
            print(sorted(always - reference)[:20], sorted(reference - ever)[:20])


if __name__ == "__main__":
    main()
