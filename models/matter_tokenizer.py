"""MATTER: a sub-word vocabulary that keeps the words of materials whole.

Words that a detector takes for materials get higher counts, and an ordinary WordPiece vocabulary
is trained on these ("MATTER", arXiv:2506.11115). Everything here is plain Python and deterministic;
encoding runs in the Rust library ``tokenizers``.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from matattn.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PREFIX = "##"  # of pieces inside a word
RULES = ("paper", "first_label")
LONGEST_WORD = 200  # characters; a longer one is [UNK]
Number = int | float
ENCODINGS = ("wordpiece", "bpe")
_SCALE = 2**20  # counts are whole multiples of 1 / _SCALE: sums do not depend on their order
_WIDTH = 2**24  # a pair of ids is one number, left * _WIDTH + right


def word_probability(pieces: np.ndarray, rule: str = "paper") -> tuple[int, float]:
    """Return the class of a word and its probability, from those of its pieces [n, C].

    "paper" averages: the class is argmax_c (1/n) sum_i P(t_i, c), the probability that average.
    "first_label" is the rule of the authors' code: the class of the first piece, and the mean over
    the pieces of max_c P(t_i, c), whatever class each of them prefers.

    Raises:
        ConfigError: the rule is another one.
    """
    if rule == "paper":
        mean = pieces.mean(0)
        return int(mean.argmax()), float(mean.max())
    if rule == "first_label":
        return int(pieces[0].argmax()), float(pieces.max(1).mean())
    raise ConfigError(f"word_probability={rule!r}: expected one of {', '.join(RULES)}")


def adjusted_frequency(frequency: Number, probability: Number, strength: Number) -> float:
    """Return freq' = freq + lambda p / (1 - p), with lambda = ``strength``.

    p is rounded to two decimals and clamped to [0.01, 0.99], so the second term is at most
    99 lambda. It does not grow with the frequency, so it lifts rare words.
    """
    p = min(max(round(probability, 2), 0.01), 0.99)
    return frequency + strength * p / (1 - p)


@dataclass
class WordCounts:
    """Counts of words (lower case) as materials and otherwise; a word may have both."""

    material: Counter[str] = field(default_factory=Counter)
    general: Counter[str] = field(default_factory=Counter)
    _probability: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, word: str, probability: Number | None = None, count: int = 1) -> None:
        """Count a word; with a ``probability``, as a material."""
        if probability is None:
            self.general[word] += count
        else:
            self.material[word] += count
            self._probability[word] += count * probability

    def probability(self, word: str) -> float:
        """Return the mean probability of the occurrences of ``word`` as a material."""
        return self._probability[word] / self.material[word]

    def adjusted(self, strength: Number) -> dict[str, Number]:
        """Return the counts to train a vocabulary on, the sum of a word's two counts.

        With ``strength`` 0 these are the plain counts.
        """
        counts: dict[str, Number] = dict(self.general)
        for word, frequency in self.material.items():
            lifted = adjusted_frequency(frequency, self.probability(word), strength)
            counts[word] = counts.get(word, 0) + lifted
        return counts


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in the order of their ids (specials, alphabet, merged), and the merges made."""

    pieces: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    merge_counts: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.pieces)


def train_vocabulary(
    counts: Mapping[str, Number],
    size: int,
    min_frequency: Number = 2,
    limit_alphabet: int = 1000,
) -> Vocabulary:
    """Merge the most frequent pair of neighbouring pieces until there are ``size`` pieces.

    This is the rule of Hugging Face's WordPiece trainer (byte-pair encoding in which pieces inside
    a word begin with "##"), with counts that may be fractional. Ids are in this order: specials,
    the ``limit_alphabet`` most frequent characters by code point, characters inside words as they
    first occur in the sorted words, then merges. Of pairs with equal counts, the one with the
    smaller ids is merged first. The result therefore depends on the counts alone.

    Raises:
        DataError: there is no word.
        ConfigError: ``size`` has no room for the alphabet.
    """
    words = sorted(word for word, count in counts.items() if word and count > 0)
    if not words:
        raise DataError("the corpus holds no words: give texts to make a vocabulary of")
    weights = [round(counts[word] * _SCALE) for word in words]
    pieces, ids, spelled = _spell(words, weights, limit_alphabet)
    if len(pieces) > size:
        raise ConfigError(
            f"a vocabulary of {size} has no room for the {len(pieces)} characters and special "
            "tokens of this corpus: ask for a larger one, or limit the alphabet"
        )
    pairs: dict[int, int] = defaultdict(int)
    words_of: dict[int, list[int]] = defaultdict(list)
    for word, symbols in enumerate(spelled):
        for left, right in zip(symbols, symbols[1:], strict=False):
            pairs[left * _WIDTH + right] += weights[word]
            words_of[left * _WIDTH + right].append(word)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    floor = max(1, min_frequency) * _SCALE
    merges, merge_counts = [], []
    while heap and len(pieces) < size:
        stored, pair = heapq.heappop(heap)
        count = pairs.get(pair, 0)
        if -stored != count:  # the pair has become rarer since it was pushed
            if count > 0:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < floor:
            break
        left, right = divmod(pair, _WIDTH)
        joined = pieces[left] + pieces[right].removeprefix(PREFIX)
        new = ids.setdefault(joined, len(pieces))
        if new == len(pieces):
            pieces.append(joined)
        merges.append((pieces[left], pieces[right]))
        merge_counts.append(count / _SCALE)
        del pairs[pair]
        chosen = words_of.pop(pair)
        for grown in _merge(spelled, weights, chosen, left, right, new, pairs, words_of):
            heapq.heappush(heap, (-pairs[grown], grown))
    return Vocabulary(tuple(pieces), tuple(merges), tuple(merge_counts))


def _spell(
    words: Sequence[str], weights: Sequence[int], limit: int
) -> tuple[list[str], dict[str, int], list[list[int]]]:
    """Return first pieces, their ids, and words as lists of ids, without rarer characters."""
    counts: Counter[str] = Counter()
    for word, weight in zip(words, weights, strict=True):
        for character in word:
            counts[character] += weight
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[:limit]
    pieces = [*SPECIAL, *sorted(alphabet)]
    ids = {piece: number for number, piece in enumerate(pieces)}
    spelled = []
    for word in words:
        symbols = []
        for position, character in enumerate(word):
            if character in ids:
                piece = PREFIX + character if position else character
                if (number := ids.get(piece)) is None:
                    number = ids[piece] = len(pieces)
                    pieces.append(piece)
                symbols.append(number)
        spelled.append(symbols)
    return pieces, ids, spelled


def _merge(
    spelled: list[list[int]],
    weights: Sequence[int],
    chosen: Iterable[int],
    left: int,
    right: int,
    new: int,
    pairs: dict[int, int],
    words_of: dict[int, list[int]],
) -> set[int]:
    """Merge a pair in the ``chosen`` words, update the counts, and return the pairs that grew."""
    grown: set[int] = set()
    for word in dict.fromkeys(chosen):
        symbols, weight = spelled[word], weights[word]
        i = 0
        while True:
            try:
                i = symbols.index(left, i)
            except ValueError:
                break
            if symbols[i + 1 : i + 2] != [right]:
                i += 1
                continue
            if i:
                before = symbols[i - 1]
                pairs[before * _WIDTH + left] -= weight
                pair = before * _WIDTH + new
                pairs[pair] += weight
                words_of[pair].append(word)
                grown.add(pair)
            symbols[i : i + 2] = [new]
            i += 1
            if i < len(symbols):
                after = symbols[i]
                pairs[right * _WIDTH + after] -= weight
                pair = new * _WIDTH + after
                pairs[pair] += weight
                words_of[pair].append(word)
                grown.add(pair)
    return grown


def segment(word: str, pieces: frozenset[str] | set[str]) -> list[str]:
    """Split a word into pieces by greedy longest match from its beginning; [UNK] if that fails."""
    segments, start = [], 0
    while start < len(word):
        prefix = PREFIX if start else ""
        for end in range(len(word), start, -1):
            if (piece := prefix + word[start:end]) in pieces:
                segments.append(piece)
                start = end
                break
        else:
            return ["[UNK]"]
    return segments


def normalisation() -> tuple[Normalizer, PreTokenizer]:
    """Return normaliser and pre-tokenizer.

    Compatibility forms (₂ is 2), lower case, no accents; words end at white space and punctuation.
    """
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.BertNormalizer(lowercase=True)]
    )
    return normalizer, pre_tokenizers.BertPreTokenizer()


def count_plain(lines: Iterable[str]) -> Counter[str]:
    """Count the words of a corpus as a tokenizer will see them."""
    normalizer, splitter = normalisation()
    chunks = Counter(chunk for line in lines for chunk in line.split())
    counts: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(chunk)):
            counts[word] += count
    return counts


def smallest_size(counts: Mapping[str, Number], limit_alphabet: int = 1000) -> int:
    """Return the smallest vocabulary that holds all special tokens and characters."""
    words = sorted(counts)
    return len(_spell(words, [round(counts[w] * _SCALE) for w in words], limit_alphabet)[0])


def make_tokenizer(vocabulary: Vocabulary, encoding: str = "wordpiece") -> Tokenizer:
    """Make a tokenizer of Hugging Face's ``tokenizers`` from the vocabulary.

    ``encoding``: "wordpiece" takes the longest piece that fits, "bpe" replays the merges. Texts get
    [CLS] and [SEP]. Its JSON loads in ``tokenizers`` and in ``transformers``'
    ``PreTrainedTokenizerFast``; ``vocab.txt``, a piece a line, in ``BertTokenizerFast``.

    Raises:
        ConfigError: the encoding is unknown.
    """
    from tokenizers import Tokenizer, decoders, models, processors

    ids = {piece: number for number, piece in enumerate(vocabulary.pieces)}
    if encoding == "wordpiece":
        model: models.Model = models.WordPiece(
            ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD
        )
    elif encoding == "bpe":
        model = models.BPE(
            ids, list(vocabulary.merges), unk_token="[UNK]", continuing_subword_prefix=PREFIX
        )
    else:
        raise ConfigError(f"encoding={encoding!r}: expected one of {', '.join(ENCODINGS)}")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalisation()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    ends = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
