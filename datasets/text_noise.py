"""Misspelt materials: names and formulas as they get damaged between a paper and its plain text.

The cases of MATTER's detector data (arXiv:2506.11115): digits of names become x, formulas gain or
change a character. Words that come out are split anew. The paper also puts spaces round hyphens
and brackets of names: nothing would change here, where words end at every such mark.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

import numpy as np

from matattn.text import Sentence, split_words

_DIGITS = re.compile(r"\d")


def noisy_name(text: str) -> str:
    """Digits become x."""
    return _DIGITS.sub("x", text)


def _at(change: Callable[[str], str]) -> Callable[[str, np.random.Generator], str]:
    """Apply ``change`` to one random digit, if there is one."""

    def changed(text: str, generator: np.random.Generator) -> str:
        digits = [found.start() for found in _DIGITS.finditer(text)]
        if not digits:
            return text
        place = int(generator.choice(digits))
        return text[:place] + change(text[place]) + text[place + 1 :]

    return changed


def _insert(choices: str) -> Callable[[str, np.random.Generator], str]:
    def changed(text: str, generator: np.random.Generator) -> str:
        place = int(generator.integers(len(text) + 1))
        return text[:place] + str(generator.choice(list(choices))) + text[place:]

    return changed


def _swap_case(text: str, generator: np.random.Generator) -> str:
    place = int(generator.integers(len(text)))
    return text[:place] + text[place].swapcase() + text[place + 1 :]


FORMULA_NOISE = (
    _insert(string.ascii_lowercase),
    _at(lambda digit: f"({digit})"),
    _insert("."),
    _swap_case,
    _at(lambda digit: 2 * digit),
    _insert("*&%$#"),
)


def noisy(sentence: Sentence, generator: np.random.Generator) -> Sentence:
    """The sentence with noise on its ``name`` spans, and on each ``formula`` one that changes it;
    labels go with the words that come out."""
    words: list[str] = []
    spans, place = [], 0
    for start, end, kind in sentence.of(("name", "formula")):
        words += sentence.words[place:start]
        if kind == "formula":
            formula = "".join(sentence.words[start:end])
            order = generator.permutation(len(FORMULA_NOISE))
            tried = (FORMULA_NOISE[number](formula, generator) for number in order)
            text = next(changed for changed in tried if changed != formula)
        else:
            text = noisy_name(" ".join(sentence.words[start:end]))
        changed = [word for word, _, _ in split_words(text)]
        spans.append((len(words), len(words) + len(changed), kind))
        words += changed
        place = end
    words += sentence.words[place:]
    kept = tuple(span for span in spans if span[0] < span[1])
    return Sentence(tuple(words), kept, sentence.split, sentence.source)
