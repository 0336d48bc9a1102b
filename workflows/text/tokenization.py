"""MATTER in one run: train the detector, find the materials of a corpus, build the vocabulary.

``run(config, folder, prepared)`` writes the run folder: scores of the detector, the vocabulary
beside plain WordPiece and BPE for several sizes and strengths, frequency tables, report and bundle.
"""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from matattn import bundle
from matattn.citations import LICENCES
from matattn.config import build, import_extra, require
from matattn.datasets.text_noise import noisy
from matattn.errors import ConfigError
from matattn.files import write_json, write_text
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
from matattn.training.schedules import Schedule
from matattn.workflows.fitting import check_settings
from matattn.workflows.text import report
from matattn.workflows.text.fitting import Batch, TextTraining, opening
from matattn.workflows.text.fitting import train as fit_texts
from matattn.workflows.text.predict import TextModel, find_spans, tag
from matattn.workflows.text.report import results_table

__all__ = ["Detection", "prepare", "results_table", "run"]

LONGEST_TRAINED = 64  # words; longer sentences are trained on in parts
GENERAL_WORDS = 20_000  # the most frequent of them are what a vocabulary is charged for
EXAMPLES = ("germanium", "GaAs", "perovskite", "hydroxyapatite", "LiNi0.8Co0.15Al0.05O2")


class Detection(TextTraining):
    """Cross-entropy of the label of every character, each word counting once."""

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        keys = ("characters", "owners", "shapes", "lengths")
        logits = self.network(**{key: batch[key] for key in keys})
        owner = batch["owners"][batch["owners"] >= 0]
        losses = cross_entropy(logits, batch["labels"][owner], reduction="none")
        return (losses / owner.bincount()[owner]).sum() / len(batch["labels"])


@dataclass(frozen=True)
class Prepared:
    """What a configuration describes, built and checked."""

    dataset: TextDataset
    sentences: list[Sentence]  # with spans of the types name and formula
    network: nn.Module
    schedule: Schedule
    fingerprint: str  # of the data


def prepare(config: dict[str, Any]) -> Prepared:
    """Read the text and build the detector; raises ConfigError or DataError for any mistake."""
    task = config["task"]
    check_settings(config)
    number, room = (int, float), len(SPECIAL) + 1
    require("task.vocab_size", task["vocab_size"], int, lambda n: n >= room, f"at least {room}")
    require("task.strength", task["strength"], number, _is_strength, "a number from 0 on")
    require("task.min_frequency", task["min_frequency"], number, lambda x: x > 0, "above 0")
    require("task.word_probability", task["word_probability"], str, RULES.__contains__,
            f"one of {', '.join(RULES)}")  # fmt: skip
    require("task.noise_copies", task["noise_copies"], int, lambda n: n >= 0, "0 or more")
    require("task.sizes", task["sizes"], list,
            lambda xs: all(isinstance(x, int) and x >= room for x in xs),
            f"a list of whole numbers from {room} on")  # fmt: skip
    require("task.strengths", task["strengths"], list, lambda xs: all(map(_is_strength, xs)),
            "a list of numbers from 0 on")  # fmt: skip
    if config["init_from"]:
        raise ConfigError("init_from starts trainings on crystals only, not on text")
    import_extra("tokenizers")
    dataset: TextDataset = build(config["data"], "data")
    sentences = [as_materials(sentence, dataset.material_types) for sentence in dataset.sentences]
    for split in ("train", "test"):
        if not any(s.spans for s in sentences if s.split == split):
            raise ConfigError(f"{dataset.name}: no labelled material in its {split} sentences")
    least = smallest_size(count_plain(dataset.corpus))
    if (size := min([task["vocab_size"], *task["sizes"]])) < least:
        raise ConfigError(
            f"a vocabulary of {size} has no room for the {least} characters and special tokens of "
            f"{dataset.name}: task.vocab_size and task.sizes must be larger"
        )
    schedule = build(config["optimizer"]["schedule"], "optimizer.schedule")
    L.seed_everything(config["seed"], workers=True, verbose=False)
    network = build(config["model"], "model")
    return Prepared(dataset, sentences, network, schedule, dataset.fingerprint())


def _is_strength(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def as_materials(sentence: Sentence, types: Sequence[str]) -> Sentence:
    """The sentence with its materials as spans "formula" (made of element symbols) or "name"."""
    spans: list[Span] = []
    for start, end, kind in sentence.of(types):
        if kind not in ("name", "formula"):
            text = "".join(sentence.words[start:end])
            kind = "formula" if is_formula(text) else "name"
        spans.append((start, end, kind))
    return Sentence(sentence.words, tuple(spans), sentence.split, sentence.source)


@one_thread()
def run(config: dict[str, Any], folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Train as configured and fill the run folder; returns the content of ``metrics.json``."""
    task, dataset = config["task"], prepared.dataset
    by_split = {
        split: [s for s in prepared.sentences if s.split == split and s.words]
        for split in ("train", "val", "test")
    }
    generator = np.random.default_rng(config["seed"])
    train = [part for s in by_split["train"] for part in parts(s, LONGEST_TRAINED)]
    noised = [(s, noisy(s, generator)) for _ in range(task["noise_copies"]) for s in train]
    copies = [copy for sentence, copy in noised if copy.words != sentence.words]
    trained = [s for s in [*train, *copies] if s.words]
    optimizer = {**config["optimizer"], "schedule": prepared.schedule}
    module = Detection(prepared.network, optimizer, [opening(s) for s in trained], folder)
    log = fit_texts(config, folder, module, {"train": trained, "val": by_split["val"]}, _collate)
    described: dict[str, Any] = {
        "kind": "text",
        "labels": list(LABELS),
        "word_probability": task["word_probability"],
        "vocabulary": {
            "size": task["vocab_size"],
            "strength": task["strength"],
            "min_frequency": task["min_frequency"],
            "ties": "smaller ids first: alphabet by code point, then merges in their order",
        },
        "data": {"name": dataset.name, "fingerprint": prepared.fingerprint, "note": dataset.note},
        "seed": config["seed"],
        "licence": LICENCES.get(dataset.name, ""),
    }
    model = TextModel(prepared.network.cpu().eval(), described, None)
    scores = {s: _detector_scores(model, by_split["train"], by_split[s]) for s in ("val", "test")
              if by_split[s]}  # fmt: skip
    counts = count_words(model, dataset.corpus)
    if not counts.material:
        print(
            "warning: the detector found no material in the corpus, so the vocabularies are those "
            "of plain WordPiece; train longer (trainer.max_epochs) or on more labelled sentences",
            file=sys.stderr,
        )
    mentions = _mentions(by_split["test"])
    rows, vocabularies = _compare(task, counts, mentions)
    chosen = vocabularies[task["vocab_size"], task["strength"]]
    plain = vocabularies[task["vocab_size"], 0]
    metrics: dict[str, Any] = {
        split: {"detector": score, "sentences": len(by_split[split])}
        for split, score in scores.items()
    }
    metrics["vocabularies"] = rows
    tokenizers = {"wordpiece": make_tokenizer(plain), "matter": make_tokenizer(chosen)}
    metrics["examples"] = {
        name: {word: made.encode(word, add_special_tokens=False).tokens for word in EXAMPLES}
        for name, made in tokenizers.items()
    }
    metrics["corpus"] = {
        "lines": len(dataset.corpus),
        "words": sum(counts.general.values()) + sum(counts.material.values()),
        "material_words": sum(counts.material.values()),
        "types": len(counts.general.keys() | counts.material.keys()),
    }
    metrics["parameters"] = sum(p.numel() for p in prepared.network.parameters())
    metrics["train_time_s"] = round(log.seconds, 1)
    metrics["rows"] = {split: len(found) for split, found in by_split.items()}
    described["metrics"] = metrics
    described["vocabulary"]["pieces"] = len(chosen)
    _write_frequencies(folder / "frequencies.csv", counts, task["strength"])
    report.vocabulary_plot(folder / "vocabularies.png", rows)
    report.loss_plot(folder / "loss.png", log.rows)
    arguments = {key: value for key, value in config["model"].items() if key != "_target_"}
    card, text = (
        report.tokenization_report(config, dataset, metrics, model)
        for model in ("PATH/TO/THIS/FOLDER", os.path.relpath(folder / "model"))
    )
    files = {
        "tokenizer.json": tokenizers["matter"].to_str(),
        "wordpiece.json": tokenizers["wordpiece"].to_str(),
        "vocab.txt": "".join(f"{piece}\n" for piece in chosen.pieces),
    }
    bundle.save(folder / "model", prepared.network, arguments, described,
                report.card_text(card), files=files)  # fmt: skip
    write_text(folder / "report.md", text)
    write_json(folder / "metrics.json", metrics)  # last: its presence says that the run is finished
    return metrics


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
    for text, (labels, chances) in zip(texts, tag(model, texts), strict=True):
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
    task: dict[str, Any], counts: WordCounts, mentions: list[list[str]]
) -> tuple[list[dict[str, Any]], dict[tuple[int, float], Vocabulary]]:
    """Vocabularies of all sizes and strengths, and what each does to materials and other words."""
    sizes = sorted({*task["sizes"], task["vocab_size"]})
    strengths = sorted({0, *task["strengths"], task["strength"]})
    general = counts.general.most_common(GENERAL_WORDS)
    rows, vocabularies = [], {}
    for size in sizes:
        for strength in strengths:
            vocabulary = train_vocabulary(counts.adjusted(strength), size, task["min_frequency"])
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


def _write_frequencies(path: Path, counts: WordCounts, strength: float) -> None:
    """Every word: counts as a material and otherwise, mean probability, adjusted count."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["word", "material", "probability", "general", "adjusted"])
    adjusted = counts.adjusted(strength)
    for word in sorted(adjusted, key=lambda word: (-adjusted[word], word)):
        material = counts.material[word]
        chance = f"{counts.probability(word):.6f}" if material else ""
        writer.writerow([word, material, chance, counts.general[word], f"{adjusted[word]:.6f}"])
    write_text(path, text.getvalue())
