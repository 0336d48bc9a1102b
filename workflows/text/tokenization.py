"""MATTER in one run: train the detector, find the materials of a corpus, build the vocabulary."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from matattn.config import RunConfig, Section, at_least, build, one_of, setting
from matattn.datasets.text_noise import noisy
from matattn.errors import ConfigError
from matattn.extras import import_extra
from matattn.models.material_detector import LABELS, encode_words, is_formula
from matattn.models.matter_tokenizer import (
    RULES,
    SPECIAL,
    Vocabulary,
    WordCounts,
    count_plain,
    make_tokenizer,
    normalisation,
    smallest_size,
    train_vocabulary,
)
from matattn.runtime import one_thread
from matattn.text import (
    Sentence,
    Span,
    TextDataset,
    parts,
    span_score,
    spans_of,
    split_words,
    to_labels,
    word_score,
)
from matattn.training.data import Loaders
from matattn.training.run_log import RunLog
from matattn.training.schedules import Schedule
from matattn.workflows.fitting import GradientDescent, check_batches
from matattn.workflows.outputs import Outputs
from matattn.workflows.text import report
from matattn.workflows.text.fitting import Batch, TextTraining, make_batches, opening
from matattn.workflows.text.fitting import train as fit_texts
from matattn.workflows.text.predict import TextModel, coverage, find_spans, label_sets, tag

LONGEST_TRAINED = 64  # words; longer sentences are trained on in parts
GENERAL_WORDS = 20_000  # the most frequent of them are what a vocabulary is charged for
EXAMPLES = ("germanium", "GaAs", "perovskite", "hydroxyapatite", "LiNi0.8Co0.15Al0.05O2")
SPLITS = ("train", "val", "test")
_ROOM = len(SPECIAL) + 1  # pieces of the smallest vocabulary


def _is_strength(value: float) -> bool:
    return 0 <= value < math.inf


@dataclass(frozen=True)
class TokenizationSettings(Section):
    """Settings of detector and vocabulary; ``conf/task/tokenization.yaml`` explains each."""

    key: ClassVar[str] = "task"

    workflow: str = "tokenization"
    batch_size: int = at_least(32, 1)
    select: str = one_of("final", ("final", "best"))
    noise_copies: int = at_least(1, 0)
    word_probability: str = one_of("paper", tuple(RULES))
    vocab_size: int = at_least(8000, _ROOM)
    strength: float = setting(1.0, "a number from 0 on", _is_strength)
    min_frequency: float = setting(2, "above 0", lambda x: x > 0)
    sizes: list[int] = setting(
        [], f"a list of whole numbers from {_ROOM} on", lambda xs: all(x >= _ROOM for x in xs)
    )
    strengths: list[float] = setting(
        [], "a list of numbers from 0 on", lambda xs: all(map(_is_strength, xs))
    )


class Detection(TextTraining):
    """Cross-entropy of the label of every character, each word counting once."""

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return the loss of a batch."""
        keys = ("characters", "owners", "shapes", "lengths")
        logits = self.network(**{key: batch[key] for key in keys})
        owner = batch["owners"][batch["owners"] >= 0]
        losses = cross_entropy(logits, batch["labels"][owner], reduction="none")
        return (losses / owner.bincount()[owner]).sum() / len(batch["labels"])


@dataclass(frozen=True)
class TokenizationTask:
    """A detector and a vocabulary to train, prepared: the text and the network."""

    settings: ClassVar[type[Section]] = TokenizationSettings
    optimizer: ClassVar[type[Section]] = GradientDescent
    results_table = staticmethod(report.vocabulary_table)

    config: RunConfig[TokenizationSettings, GradientDescent]
    dataset: TextDataset
    sentences: Mapping[str, Sequence[Sentence]]  # by split, with spans of types name and formula
    network: nn.Module
    schedule: Schedule
    fingerprint: str  # of the data

    @classmethod
    def prepare(cls, config: RunConfig[TokenizationSettings, GradientDescent]) -> Self:
        """Read the text and build the detector; raises ConfigError or DataError for any mistake."""
        check_batches(config)
        if config.init_from:
            raise ConfigError("init_from cannot start a training on text")
        import_extra("tokenizers")
        dataset: TextDataset = build(config.data, "data")
        labelled = [as_materials(s, dataset.material_types) for s in dataset.sentences]
        sentences = {
            split: [s for s in labelled if s.split == split and s.words] for split in SPLITS
        }
        for split in ("train", "test"):
            if not any(s.spans for s in sentences[split]):
                raise ConfigError(f"{dataset.name}: no labelled material in its {split} sentences")
        _check_sizes(config.task, dataset)
        schedule = build(config.optimizer.schedule, "optimizer.schedule")
        L.seed_everything(config.seed, workers=True, verbose=False)
        network = build(config.model, "model")
        return cls(config, dataset, sentences, network, schedule, dataset.fingerprint())

    @one_thread()
    def train(self, folder: Path) -> RunLog:
        """Train the detector, from the last checkpoint in ``folder`` if there is one."""
        loaders = make_batches(self.config, self._texts, _collate)
        return fit_texts(self.config, folder, self.module(folder), loaders)

    def module(self, folder: Path) -> Detection:
        """Return the training; batches that cannot be used are told in ``folder``."""
        ids = [opening(sentence) for sentence in self._texts["train"]]
        return Detection(self.network, self.config.optimizer, self.schedule, ids, folder)

    def data(self) -> Loaders:
        """Return the batches for a Trainer of one's own."""
        return Loaders(lambda: make_batches(self.config, self._texts, _collate))

    @cached_property
    def _texts(self) -> dict[str, Sequence[Sentence]]:
        """Return the sentences of training, with noisy copies, and of validation."""
        generator = np.random.default_rng(self.config.seed)
        train = [part for s in self.sentences["train"] for part in parts(s, LONGEST_TRAINED)]
        copies = self.config.task.noise_copies
        noised = [(s, noisy(s, generator)) for _ in range(copies) for s in train]
        changed = [copy for sentence, copy in noised if copy.words != sentence.words]
        texts = [s for s in [*train, *changed] if s.words]
        return {"train": texts, "val": self.sentences["val"]}

    @one_thread()
    def evaluate(self, folder: Path, trained: RunLog) -> Outputs:
        """Return scores of the detector, vocabularies side by side, and the chosen one."""
        task, dataset = self.config.task, self.dataset
        vocabulary = {
            "size": task.vocab_size,
            "strength": task.strength,
            "min_frequency": task.min_frequency,
            "ties": "smaller ids first: alphabet by code point, then merges in their order",
        }
        described = {"labels": list(LABELS), "word_probability": task.word_probability}
        model = TextModel(self.network.cpu().eval(), described, None)
        model = replace(model, uncertainty=label_sets(model, self.sentences["val"]))
        counts = count_words(model, dataset.corpus)
        if not counts.material:
            print(
                "warning: the detector found no material in the corpus, so the vocabularies are "
                "those of plain WordPiece; train longer (trainer.max_epochs) or on more labelled "
                "sentences",
                file=sys.stderr,
            )
        rows, vocabularies = _compare(task, counts, _mentions(self.sentences["test"]))
        chosen = vocabularies[task.vocab_size, task.strength]
        tokenizers = {
            "wordpiece": make_tokenizer(vocabularies[task.vocab_size, 0]),
            "matter": make_tokenizer(chosen),
        }
        metrics = self._metrics(model, counts, trained)
        metrics["vocabularies"] = rows
        metrics["examples"] = {
            name: {word: made.encode(word, add_special_tokens=False).tokens for word in EXAMPLES}
            for name, made in tokenizers.items()
        }
        return Outputs(
            metrics=metrics,
            network=self.network,
            arguments=self.config.model.arguments,
            description={**described, "vocabulary": {**vocabulary, "pieces": len(chosen)}},
            data={"name": dataset.name, "fingerprint": self.fingerprint, "note": dataset.note},
            epochs=trained.epochs,
            template="text/tokenization.md",
            report=report.vocabulary_values(self.config, dataset, metrics),
            figures={
                "vocabularies.png": report.vocabulary_plot(rows),
                "loss.png": report.loss_plot(trained.rows),
            },
            tables={"frequencies.csv": list(_frequencies(counts, task.strength))},
            uncertainty=model.uncertainty,
            bundle_files={
                "tokenizer.json": tokenizers["matter"].to_str(),
                "wordpiece.json": tokenizers["wordpiece"].to_str(),
                "vocab.txt": "".join(f"{piece}\n" for piece in chosen.pieces),
            },
        )

    def _metrics(self, model: TextModel, counts: WordCounts, log: RunLog) -> dict[str, Any]:
        """Return scores by split, and what the detector found in the corpus."""
        train = self.sentences["train"]
        metrics: dict[str, Any] = {
            split: {
                "detector": _detector_scores(model, train, self.sentences[split]),
                "sentences": len(self.sentences[split]),
            }
            for split in ("val", "test")
            if self.sentences[split]
        }
        metrics["corpus"] = {
            "lines": len(self.dataset.corpus),
            "words": sum(counts.general.values()) + sum(counts.material.values()),
            "material_words": sum(counts.material.values()),
            "types": len(counts.general.keys() | counts.material.keys()),
        }
        if found := coverage(model, self.sentences["test"]):
            metrics["sets"] = found
        metrics["parameters"] = sum(p.numel() for p in self.network.parameters())
        metrics["train_time_s"] = round(log.seconds, 1)
        metrics["rows"] = {split: len(of_split) for split, of_split in self.sentences.items()}
        return metrics


def _check_sizes(task: TokenizationSettings, dataset: TextDataset) -> None:
    """Raise ConfigError for a vocabulary without room for the characters of the corpus."""
    least = smallest_size(count_plain(dataset.corpus))
    if (size := min([task.vocab_size, *task.sizes])) < least:
        raise ConfigError(
            f"a vocabulary of {size} has no room for the {least} characters and special tokens of "
            f"{dataset.name}: task.vocab_size and task.sizes must be larger"
        )


def as_materials(sentence: Sentence, types: Sequence[str]) -> Sentence:
    """Return the sentence with spans "formula" (made of element symbols) and "name"."""
    spans: list[Span] = []
    for start, end, kind in sentence.of(types):
        if kind not in ("name", "formula"):
            text = "".join(sentence.words[start:end])
            kind = "formula" if is_formula(text) else "name"
        spans.append((start, end, kind))
    return Sentence(sentence.words, tuple(spans), sentence.split, sentence.source)


def _collate(sentences: Sequence[Sentence]) -> Batch:
    labels = [LABELS.index(name) for s in sentences for name in to_labels(len(s.words), s.spans)]
    words = encode_words([sentence.words for sentence in sentences])
    return {**words, "labels": torch.tensor(labels)}


def _detector_scores(
    model: TextModel, train: Sequence[Sentence], held_out: Sequence[Sentence]
) -> dict[str, Any]:
    """Word and span scores beside a dictionary: words that are mostly materials in training."""
    wanted = [list(sentence.spans) for sentence in held_out]
    found = find_spans(model, held_out)
    known, inside = Counter[str](), Counter[str]()
    for sentence in train:
        labels = to_labels(len(sentence.words), sentence.spans)
        for word, label in zip(sentence.words, labels, strict=True):
            known[word.lower()] += 1
            inside[word.lower()] += label != "O"
    listed = []
    for sentence in held_out:
        lowered = [word.lower() for word in sentence.words]
        materials = [2 * inside[word] > known[word] for word in lowered]
        labels = ["I-name" if one else "O" for one in materials]
        listed.append(spans_of(labels))
    scores: dict[str, Any] = {}
    for name, spans in (("", found), ("dictionary_", listed)):
        single, whole = word_score(spans, wanted), span_score(_any(spans), _any(wanted))
        scores[f"{name}word_f1"], scores[f"{name}span_f1"] = single.f1, whole.f1
        if not name:
            scores |= {
                "word_precision": single.precision,
                "word_recall": single.recall,
                "typed_span_f1": span_score(spans, wanted).f1,
                "materials": whole.wanted,
            }
    return scores


def _any(sentences: Sequence[Sequence[Span]]) -> list[list[Span]]:
    """Spans whatever their type."""
    return [[(start, end, "") for start, end, _ in spans] for spans in sentences]


def count_words(model: TextModel, lines: Sequence[str]) -> WordCounts:
    """Words of a corpus, as the vocabulary will see them, with what the detector says of them."""
    normalizer, splitter = normalisation()
    spelled: dict[str, list[str]] = {}
    counts = WordCounts()
    texts = [[word for word, _, _ in split_words(line)] for line in lines]
    for text, (labels, chances, _) in zip(texts, tag(model, texts), strict=True):
        for word, label, chance in zip(text, labels, chances, strict=True):
            if word not in spelled:
                normal = normalizer.normalize_str(word)
                spelled[word] = [part for part, _ in splitter.pre_tokenize_str(normal)]
            for part in spelled[word]:
                counts.add(part, None if label == "O" else chance)
    return counts


def _mentions(sentences: Sequence[Sentence]) -> list[list[str]]:
    """Words with a letter of every material in ``sentences``."""
    found = (
        [word for word in s.words[start:end] if any(map(str.isalpha, word))]
        for s in sentences
        for start, end, _ in s.spans
    )
    return [words for words in found if words]


def _compare(
    task: TokenizationSettings, counts: WordCounts, mentions: list[list[str]]
) -> tuple[list[dict[str, Any]], dict[tuple[int, float], Vocabulary]]:
    """Vocabularies of all sizes and strengths, and what each does to materials and other words."""
    sizes = sorted({*task.sizes, task.vocab_size})
    strengths = sorted({0, *task.strengths, task.strength})
    general = counts.general.most_common(GENERAL_WORDS)
    rows, vocabularies = [], {}
    for size in sizes:
        for strength in strengths:
            vocabulary = train_vocabulary(counts.adjusted(strength), size, task.min_frequency)
            vocabularies[size, strength] = vocabulary
            plain = set(vocabularies[size, 0].pieces)
            for encoding in ("wordpiece", "bpe") if strength == 0 else ("wordpiece",):
                tokenizer = make_tokenizer(vocabulary, encoding)
                rows.append({
                    "size": size,
                    "strength": strength,
                    "encoding": encoding,
                    "pieces": len(vocabulary),
                    "shared_with_wordpiece": len(plain & set(vocabulary.pieces)),
                    **intrinsic(tokenizer, mentions, general),
                })  # fmt: skip
    return rows, vocabularies


def intrinsic(
    tokenizer: Any, mentions: list[list[str]], general: Sequence[tuple[str, int]]
) -> dict[str, float]:
    """How a tokenizer cuts the words of materials, and other words (weighted by their counts)."""
    words = sorted({word for mention in mentions for word in mention})
    cut = dict(zip(words, _pieces(tokenizer, words), strict=True))
    occurrences = [cut[word] for mention in mentions for word in mention]
    types = {word.lower(): count for word, count in cut.items()}
    others = np.array(_pieces(tokenizer, [word for word, _ in general]))
    weights = np.array([count for _, count in general])
    return {
        "material_whole_words": float(np.mean([count == 1 for count in occurrences])),
        "material_whole_mentions": float(
            np.mean([all(cut[word] == 1 for word in mention) for mention in mentions])
        ),
        "material_whole_types": float(np.mean([count == 1 for count in types.values()])),
        "material_fertility": float(np.mean(occurrences)),
        "general_whole_words": float(np.average(others == 1, weights=weights)),
        "general_fertility": float(np.average(others, weights=weights)),
    }


def _pieces(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Of each word; one that the vocabulary cannot spell counts as its characters, two at least."""
    encoded = tokenizer.encode_batch(list(words), add_special_tokens=False)
    return [
        max(len(word), 2) if "[UNK]" in one.tokens else max(len(one.ids), 1)
        for word, one in zip(words, encoded, strict=True)
    ]


def _frequencies(counts: WordCounts, strength: float) -> Iterator[dict[str, Any]]:
    """Yield a row for every word: its counts, mean probability, and adjusted count."""
    adjusted = counts.adjusted(strength)
    for word in sorted(adjusted, key=lambda word: (-adjusted[word], word)):
        material = counts.material[word]
        yield {
            "word": word,
            "material": material,
            "probability": f"{counts.probability(word):.6f}" if material else "",
            "general": counts.general[word],
            "adjusted": f"{adjusted[word]:.6f}",
        }
