"""Time to train a vocabulary, and to encode, beside Hugging Face's Rust library.

    python benchmarks/vocabulary_training.py CORPUS.txt

Both trainers get the same word counts, one thread each. The Rust trainer takes no counts: it is fed
every word as often as it occurs, and what that alone takes (a vocabulary of the alphabet's size) is
given beside. The vocabularies are compared before the times are; ties between equally frequent
pairs are broken by chance there, so they differ by some entries. Ours is trained twice and must be
the same. Writes ``benchmarks/results/vocabulary_training.csv``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from matattn.models.matter_tokenizer import (
    SPECIAL,
    count_plain,
    make_tokenizer,
    smallest_size,
    train_vocabulary,
)
from matattn.runtime import processor
from matattn.tables import write_table
from matattn.text import read_text

SIZES = (8_000, 16_000, 30_522)
REPEATS = 5
SHARED = 0.99  # of the entries that both vocabularies must have
RESULT = Path(__file__).parent / "results" / "vocabulary_training.csv"


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    lines = read_text(sys.argv[1]).splitlines()
    start = time.perf_counter()
    counts = count_plain(lines)
    counted = time.perf_counter() - start
    least = smallest_size(counts)
    rows = []
    for size in SIZES:
        ours, rust = train_vocabulary(counts, size), rust_vocabulary(counts, size)
        assert ours == train_vocabulary(counts, size), "two runs differ"
        shared = len(set(ours.pieces) & rust) / len(rust)
        assert shared >= SHARED, shared
        row: dict[str, Any] = {
            "corpus_mb": f"{sum(map(len, lines)) / 1e6:.1f}",
            "types": len(counts),
            "words": sum(counts.values()),
            "size": len(ours),
            "shared": f"{shared:.4f}",
            "count_s": f"{counted:.2f}",
        }
        times = {
            "ours_s": timed(lambda size=size: train_vocabulary(counts, size)),
            "rust_s": timed(lambda size=size: rust_vocabulary(counts, size)),
            "rust_feeding_s": timed(lambda: rust_vocabulary(counts, least)),
        }
        row |= {key: f"{seconds:.3f}" for key, seconds in times.items()}
        row["ratio"] = f"{times['ours_s'] / times['rust_s']:.2f}"
        merging = times["rust_s"] - times["rust_feeding_s"]
        row["ratio_without_feeding"] = f"{times['ours_s'] / merging:.1f}"
        row |= encoding(ours, lines)
        rows.append(row | {"processor": processor()})
        print(rows[-1], flush=True)
    write_table(RESULT, rows)


def rust_vocabulary(counts: Mapping[str, int], size: int) -> set[str]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, limit_alphabet=1000, special_tokens=list(SPECIAL),
        show_progress=False,
    )  # fmt: skip

    def words() -> Iterator[str]:
        for word, count in counts.items():
            for _ in range(count):
                yield word

    tokenizer.train_from_iterator(words(), trainer)
    return set(tokenizer.get_vocab())


def encoding(vocabulary: Any, lines: list[str]) -> dict[str, str]:
    """Megabytes a second of our tokenizer, and of Hugging Face's own BERT class with its pieces."""
    from tokenizers import BertWordPieceTokenizer

    ids = {piece: number for number, piece in enumerate(vocabulary.pieces)}
    ours, theirs = make_tokenizer(vocabulary), BertWordPieceTokenizer(ids)
    plain = [line for line in lines if line.isascii()]
    assert [e.ids for e in ours.encode_batch(plain)] == [e.ids for e in theirs.encode_batch(plain)]
    size = sum(map(len, plain)) / 1e6
    speeds = (size / timed(lambda t=t: t.encode_batch(plain)) for t in (ours, theirs))
    return dict(zip(("ours_mb_per_s", "bert_mb_per_s"), (f"{s:.2f}" for s in speeds), strict=True))


def timed(function: Callable[[], object]) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


if __name__ == "__main__":
    main()
