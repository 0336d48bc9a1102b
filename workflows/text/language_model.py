"""Train an encoder of text from scratch: first on masked words, then on labelled spans.

``run(config, folder, prepared)`` writes the run folder with span F1 beside that of a dictionary, so
that vocabularies can be compared on a task.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from matattn import bundle, pretrained
from matattn.citations import LICENCES
from matattn.config import build, import_extra, require
from matattn.errors import BundleError, ConfigError
from matattn.files import write_json, write_text
from matattn.models.matter_tokenizer import (
    SPECIAL,
    count_plain,
    make_tokenizer,
    train_vocabulary,
)
from matattn.models.text_encoder import MaskedLanguageModel, TokenClassifier
from matattn.text import (
    Sentence,
    Span,
    TextDataset,
    parts,
    span_score,
    spans_of,
    to_labels,
)
from matattn.training.schedules import Schedule
from matattn.workflows.fitting import check_settings
from matattn.workflows.text import report
from matattn.workflows.text.fitting import Batch, TextTraining, opening
from matattn.workflows.text.fitting import train as fit_texts
from matattn.workflows.text.predict import (
    WINDOW,
    TextModel,
    encode_pieces,
    find_spans,
    load_tokenizer,
)
from matattn.workflows.text.report import results_table

__all__ = ["MaskedWords", "SpanLabels", "prepare", "results_table", "run"]

VOCABULARIES = {"matter": "tokenizer.json", "wordpiece": "wordpiece.json"}
MASKED = 0.15  # of the words
KEPT, REPLACED = 0.1, 0.1  # of the masked words: left as they are, or a random piece
_HELD_OUT = 20  # every so many-th chunk of the corpus tells how well words are guessed
_IGNORED = -100
Chunk = tuple[list[int], list[int]]  # ids, and the word of each (-1: none)


class MaskedWords(TextTraining):
    """Cross-entropy of the pieces of masked words: a word is masked whole, or not at all.

    Devlin et al., arXiv:1810.04805, with whole words as of 2019. A batch is ids [B, L] and the word
    that each piece belongs to (-1: none).
    """

    network: MaskedLanguageModel

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        ids, owners = batch["ids"], batch["owners"]
        words = int(owners.max()) + 1
        drawn = torch.rand(len(ids), words + 1, generator=generator).to(ids.device)
        drawn[:, 0] = 1.0  # padding and special tokens
        chosen = drawn.gather(1, owners + 1) < MASKED
        if not chosen.any():
            chosen[0, 1] = True
        change = torch.rand(ids.shape, generator=generator).to(ids.device)
        size = self.network.encoder.embedding.num_embeddings
        other = torch.randint(len(SPECIAL), size, ids.shape, generator=generator).to(ids.device)
        shown = torch.where(chosen & (change >= KEPT), SPECIAL.index("[MASK]"), ids)
        shown = torch.where(chosen & (change >= 1 - REPLACED), other, shown)
        return cross_entropy(self.network(shown, chosen), ids[chosen])


class SpanLabels(TextTraining):
    """Cross-entropy of the BIO label of every word's first piece."""

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        logits = self.network(batch["ids"]).flatten(0, 1)
        return cross_entropy(logits, batch["labels"].flatten(), ignore_index=_IGNORED)


@dataclass(frozen=True)
class Prepared:
    """What a configuration describes, built and checked."""

    dataset: TextDataset
    types: list[str]  # of the spans that are learned
    tokenizer: Any
    network: TokenClassifier
    schedule: Schedule
    fingerprint: str  # of the data
    chunks: list[Chunk]  # of the corpus, if masked words are learned


def prepare(config: dict[str, Any]) -> Prepared:
    """Read text and tokenizer, build the encoder; raises ConfigError, DataError, BundleError."""
    task = config["task"]
    check_settings(config)
    require("task.pretraining_epochs", task["pretraining_epochs"], int, lambda n: n >= 0,
            "0 or more")  # fmt: skip
    require("task.vocabulary", task["vocabulary"], str, VOCABULARIES.__contains__,
            f"one of {', '.join(VOCABULARIES)}")  # fmt: skip
    require("model.max_length", config["model"]["max_length"], int, lambda n: n >= 3, "at least 3")
    if config["init_from"]:
        raise ConfigError("init_from starts trainings on crystals only, not on text")
    import_extra("tokenizers")
    dataset: TextDataset = build(config["data"], "data")
    known = dataset.types()
    types = known
    if task["types"] is not None:
        require("task.types", task["types"], list, bool, f"a list of {', '.join(known)}, or null")
        types = list(dict.fromkeys(map(str, task["types"])))
    if unknown := sorted(set(types) - set(known)):
        raise ConfigError(
            f"task.types: {dataset.name} has no spans of {', '.join(unknown)}; it has "
            f"{', '.join(known)}"
        )
    for split in ("train", "test"):
        if not any(s.of(types) for s in dataset.of_split(split)):
            raise ConfigError(f"{dataset.name}: no labelled span in its {split} sentences")
    tokenizer = _tokenizer(task, dataset)
    chunks: list[Chunk] = []
    if task["pretraining_epochs"]:
        chunks = _chunks(tokenizer, dataset.corpus, config["model"]["max_length"])
        if len(chunks) < 2:
            raise ConfigError(
                f"{dataset.name}: the corpus makes {len(chunks)} chunk of text, and masked words "
                "need 2, one of them held out: a longer corpus, or task.pretraining_epochs=0"
            )
    schedule = build(config["optimizer"]["schedule"], "optimizer.schedule")
    L.seed_everything(config["seed"], workers=True, verbose=False)
    config["model"] |= {
        "vocab_size": tokenizer.get_vocab_size(),
        "num_labels": 1 + 2 * len(types),
    }
    network = build(config["model"], "model")
    return Prepared(dataset, types, tokenizer, network, schedule, dataset.fingerprint(), chunks)


def _tokenizer(task: Mapping[str, Any], dataset: TextDataset) -> Any:
    """That of a tokenization run, or plain WordPiece made from the corpus."""
    if task["tokenizer"] is not None:
        folder = pretrained.find(task["tokenizer"])
        if (network := bundle.describe(folder)["network"]) != "MaterialDetector":
            raise BundleError(
                f"{folder}: is a {network}; task.tokenizer takes the model/ folder of a run of "
                "model=matter"
            )
        return load_tokenizer(folder, VOCABULARIES[task["vocabulary"]])
    if task["vocabulary"] != "wordpiece":
        raise ConfigError(
            "task.vocabulary=matter needs task.tokenizer=RUN/model, the model/ folder of a run of "
            "model=matter"
        )
    size = task["vocab_size"]
    require("task.vocab_size", size, int, lambda n: n > len(SPECIAL), f"above {len(SPECIAL)}")
    tokenizer = make_tokenizer(train_vocabulary(count_plain(dataset.corpus), size))
    tokenizer.encode_special_tokens = True  # as ``load_tokenizer``
    return tokenizer


def run(config: dict[str, Any], folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Train as configured and fill the run folder; returns the content of ``metrics.json``."""
    task, dataset, network = config["task"], prepared.dataset, prepared.network
    masked = _pretrain(config, folder / "pretraining", prepared)
    splits = {
        split: [part for s in dataset.of_split(split) for part in parts(s, WINDOW, prepared.types)]
        for split in ("train", "val", "test")
    }
    room = network.encoder.max_length - 2  # beside [CLS] and [SEP]
    trained = {
        split: [
            short for part in splits[split] for short in _fitting(prepared.tokenizer, room, part)
        ]
        for split in ("train", "val")
    }
    labels = {name: number for number, name in enumerate(_labels(prepared.types))}
    collate = partial(_collate_sentences, prepared.tokenizer, network.encoder.max_length, labels)
    optimizer = {**config["optimizer"], "schedule": prepared.schedule}
    module = SpanLabels(network, optimizer, [opening(s) for s in trained["train"]], folder)
    log = fit_texts(config, folder, module, trained, collate)
    described: dict[str, Any] = {
        "kind": "text",
        "labels": _labels(prepared.types),
        "vocabulary": {
            "name": task["vocabulary"],
            "pieces": prepared.tokenizer.get_vocab_size(),
            "from": task["tokenizer"],
        },
        "data": {"name": dataset.name, "fingerprint": prepared.fingerprint, "note": dataset.note},
        "seed": config["seed"],
        "licence": LICENCES.get(dataset.name, ""),
    }
    model = TextModel(network.cpu().eval(), described, prepared.tokenizer)
    metrics: dict[str, Any] = {
        split: _scores(model, splits["train"], splits[split], prepared.types)
        for split in ("test", "val")
        if splits[split]
    }
    metrics["pretraining"] = masked
    metrics["vocabulary"] = task["vocabulary"]
    metrics["parameters"] = sum(p.numel() for p in network.parameters())
    metrics["train_time_s"] = round(log.seconds, 1)
    metrics["rows"] = {split: len(found) for split, found in splits.items()}
    described["metrics"] = metrics
    report.loss_plot(folder / "loss.png", log.rows)
    text = report.language_report(config, dataset, metrics)
    arguments = {key: value for key, value in config["model"].items() if key != "_target_"}
    bundle.save(folder / "model", network, arguments, described, report.card_text(text),
                files={"tokenizer.json": prepared.tokenizer.to_str()})  # fmt: skip
    write_text(folder / "report.md", text)
    write_json(folder / "metrics.json", metrics)  # last: its presence says that the run is finished
    return metrics


def _labels(types: Sequence[str]) -> list[str]:
    return ["O", *(f"{begin}-{name}" for name in types for begin in "BI")]


def _pretrain(config: dict[str, Any], folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Masked words of the corpus; leaves the encoder with what it learned."""
    epochs, chunks = config["task"]["pretraining_epochs"], prepared.chunks
    result = {"epochs": epochs, "lines": len(prepared.dataset.corpus)}
    if not epochs:
        return {**result, "held_out": 0, "loss": None, "seconds": 0.0}
    splits = {
        "train": [chunk for n, chunk in enumerate(chunks) if n % _HELD_OUT],
        "val": chunks[::_HELD_OUT],
    }
    ids = [f"chunk {number} of the corpus" for number in range(len(chunks))]
    optimizer = {**config["optimizer"], "schedule": prepared.schedule}
    model = MaskedLanguageModel(prepared.network.encoder)
    module = MaskedWords(model, optimizer, ids, folder)
    settings = {**config, "trainer": {**config["trainer"], "max_epochs": epochs}}
    log = fit_texts(settings, folder, module, splits, _collate_chunks)
    loss, seconds = log.rows[-1]["val/loss"], round(log.seconds, 1)
    return {**result, "held_out": len(splits["val"]), "loss": loss, "seconds": seconds}


def _chunks(tokenizer: Any, lines: Sequence[str], length: int) -> list[Chunk]:
    """Pieces of all lines in chunks of at most ``length`` with [CLS] and [SEP], and their words."""
    cls, sep = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    chunks = []
    for one in tokenizer.encode_batch(list(lines), add_special_tokens=False):
        for start in range(0, len(one.ids), length - 2):
            ids = one.ids[start : start + length - 2]
            words = one.word_ids[start : start + length - 2]
            first = words[0] or 0
            owners = [-1, *(int(word) - first for word in words), -1]
            chunks.append(([cls, *ids, sep], owners))
    return chunks


def _collate_chunks(chunks: Sequence[Chunk]) -> Batch:
    length = max(len(ids) for ids, _ in chunks)
    ids = torch.zeros(len(chunks), length, dtype=torch.long)
    owners = torch.full((len(chunks), length), -1)
    for row, chunk in enumerate(chunks):
        count = len(chunk[0])
        ids[row, :count], owners[row, :count] = map(torch.tensor, chunk)
    return {"ids": ids, "owners": owners}


def _fitting(tokenizer: Any, room: int, sentence: Sentence) -> list[Sentence]:
    """A sentence, or parts of it, of at most ``room`` pieces; one word may have more."""
    words = list(sentence.words)
    pieces = tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False).ids
    if len(pieces) <= room or len(words) == 1:
        return [sentence]
    halves = parts(sentence, -(-len(words) // 2))
    return [part for half in halves for part in _fitting(tokenizer, room, half)]


def _collate_sentences(
    tokenizer: Any, length: int, labels: Mapping[str, int], sentences: Sequence[Sentence]
) -> Batch:
    ids, owners = encode_pieces(tokenizer, [s.words for s in sentences], length)
    target = torch.full_like(ids, _IGNORED)
    for row, (sentence, words) in enumerate(zip(sentences, owners, strict=True)):
        names = to_labels(len(sentence.words), sentence.spans)
        for place, word in enumerate(words):
            if word >= 0 and word != words[place - 1]:
                target[row, place] = labels[names[word]]
    return {"ids": ids, "labels": target}


def _scores(
    model: TextModel, train: Sequence[Sentence], held_out: Sequence[Sentence], types: list[str]
) -> dict[str, Any]:
    """Scores of all types together, of each, and of a dictionary of the training words."""
    wanted = [list(s.spans) for s in held_out]
    found = find_spans(model, held_out)
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in train:
        for word, label in zip(
            sentence.words, to_labels(len(sentence.words), sentence.spans), strict=True
        ):
            usual[word.lower()][label.replace("B-", "I-")] += 1
    best = {word: counts.most_common(1)[0][0] for word, counts in usual.items()}
    listed = []
    for sentence in held_out:
        labels = [best.get(word.lower(), "O") for word in sentence.words]
        listed.append(spans_of(labels))
    scores = {"all types": _score(found, wanted), "all, by a dictionary": _score(listed, wanted)}
    for name in types:
        ours, theirs = (
            [[span for span in spans if span[2] == name] for spans in sentences]
            for sentences in (found, wanted)
        )
        if any(theirs):
            scores[name] = _score(ours, theirs)
    return scores


def _score(found: list[list[Span]], wanted: list[list[Span]]) -> dict[str, Any]:
    score = span_score(found, wanted)
    return {
        "span_f1": score.f1,
        "precision": score.precision,
        "recall": score.recall,
        "n": score.wanted,
    }
