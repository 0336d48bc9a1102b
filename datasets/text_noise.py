"""Misspelt materials: names and formulas as they get damaged between a paper and its plain text.

The cases of MATTER's detector data (arXiv:2506.11115): names lose their closed form or their
digits, formulas gain or change a character. Words that come out are split anew.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

import numpy as np

from matattn.text import Sentence, split_words

_BRACKETS = re.compile(r"\s*([-()\[\]])\s*")
_DIGITS = re.compile(r"\d")


def noisy_name(text: str, case: int) -> str:
    """Case 1: spaces round hyphens and brackets; 2: digits become x; 3: both."""
    if case in (1, 3):
        text = _BRACKETS.sub(r" \1 ", text).strip()
    return _DIGITS.sub("x", text) if case in (2, 3) else text


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
    _at(lambda digit: f" ( {digit} ) "),
    _insert("."),
    _swap_case,
    _at(lambda digit: 2 * digit),
    _insert("*&%$#"),
)


def noisy(sentence: Sentence, generator: np.random.Generator) -> Sentence:
    """The sentence with its ``name`` spans in one of the three cases, and one of seven noises on
    each ``formula``; labels go with the words that come out."""
    case = int(generator.integers(1, 4))
    words: list[str] = []
    spans, place = [], 0
    for start, end, kind in sentence.of(("name", "formula")):
        words += sentence.words[place:start]
        if kind == "formula":
            noise = FORMULA_NOISE[int(generator.integers(len(FORMULA_NOISE)))]
            text = noise("".join(sentence.words[start:end]), generator)
        else:
            text = noisy_name(" ".join(sentence.words[start:end]), case)
        changed = [word for word, _, _ in split_words(text)]
        spans.append((len(words), len(words) + len(changed), kind))
        words += changed
        place = end
    words += sentence.words[place:]
    kept = tuple(span for span in spans if span[0] < span[1])
    return Sentence(tuple(words), kept, sentence.split, sentence.source)
