"""Misspelt materials: names and formulas as they are damaged between a paper and its plain text.

The cases are those of MATTER's detector data (arXiv:2506.11115): digits of names become x, formulas
gain or change a character. The result is split into words again. The paper also puts spaces round
hyphens and brackets of names, which would change nothing here: words end at every such mark.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

import numpy as np

from matattn.text import Sentence, Span, split_words

_DIGITS = re.compile(r"\d")


def noisy_name(text: str) -> str:
    """Replace every digit by x."""
    return _DIGITS.sub("x", text)


def _at(change: Callable[[str], str]) -> Callable[[str, np.random.Generator], str]:
    """Return a function that applies ``change`` to one random digit of a text, if it has any."""

    def changed(text: str, generator: np.random.Generator) -> str:
        digits = [match.start() for match in _DIGITS.finditer(text)]
        if not digits:
            return text
        index = int(generator.choice(digits))
        return text[:index] + change(text[index]) + text[index + 1 :]

    return changed


def _insert(choices: str) -> Callable[[str, np.random.Generator], str]:
    def changed(text: str, generator: np.random.Generator) -> str:
        index = int(generator.integers(len(text) + 1))
        return text[:index] + str(generator.choice(list(choices))) + text[index:]

    return changed


def _swap_case(text: str, generator: np.random.Generator) -> str:
    index = int(generator.integers(len(text)))
    return text[:index] + text[index].swapcase() + text[index + 1 :]


FORMULA_NOISE = (
    _insert(string.ascii_lowercase),
    _at(lambda digit: f"({digit})"),
    _insert("."),
    _swap_case,
    _at(lambda digit: 2 * digit),
    _insert("*&%$#"),
)


def noisy(sentence: Sentence, generator: np.random.Generator) -> Sentence:
    """Add noise to the ``name`` and ``formula`` spans of a sentence; labels move with the words.

    Each formula gets a kind of noise that changes it.
    """
    words: list[str] = []
    spans: list[Span] = []
    last_end = 0
    for start, end, kind in sentence.of(("name", "formula")):
        words += sentence.words[last_end:start]
        if kind == "formula":
            formula = "".join(sentence.words[start:end])
            order = generator.permutation(len(FORMULA_NOISE))
            variants = (FORMULA_NOISE[index](formula, generator) for index in order)
            text = next(variant for variant in variants if variant != formula)
        else:
            text = noisy_name(" ".join(sentence.words[start:end]))
        new_words = [word for word, _, _ in split_words(text)]
        spans.append((len(words), len(words) + len(new_words), kind))
        words += new_words
        last_end = end
    words += sentence.words[last_end:]
    kept = tuple(span for span in spans if span[0] < span[1])
    return Sentence(tuple(words), kept, sentence.split, sentence.source)
