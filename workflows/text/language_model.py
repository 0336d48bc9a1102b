"""Train an encoder of text from scratch: first on masked words, then on labelled spans."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from matattn import bundle, pretrained
from matattn.config import RunConfig, Section, Target, at_least, build, one_of, setting
from matattn.errors import BundleError, ConfigError
from matattn.extras import import_extra
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
from matattn.training.data import Loaders
from matattn.training.run_log import RunLog
from matattn.training.schedules import Schedule
from matattn.workflows.fitting import GradientDescent, check_batches
from matattn.workflows.outputs import Outputs
from matattn.workflows.text import report
from matattn.workflows.text.fitting import Batch, TextTraining, make_batches, opening
from matattn.workflows.text.fitting import train as fit_texts
from matattn.workflows.text.predict import (
    WINDOW,
    TextModel,
    coverage,
    encode_pieces,
    find_spans,
    label_sets,
    load_tokenizer,
)

VOCABULARIES = {"matter": "tokenizer.json", "wordpiece": "wordpiece.json"}
SPLITS = ("train", "val", "test")
MASKED = 0.15  # of the words
KEPT, REPLACED = 0.1, 0.1  # of the masked words: left as they are, or a random piece
_HELD_OUT = 20  # every so many-th chunk of the corpus tells how well words are guessed
_IGNORED = -100
Chunk = tuple[list[int], list[int]]  # ids, and the word of each (-1: none)


@dataclass(frozen=True)
class LanguageSettings(Section):
    """Settings of an encoder's training; ``conf/task/language_model.yaml`` explains each."""

    key: ClassVar[str] = "task"

    workflow: str = "language_model"
    batch_size: int = at_least(32, 1)
    select: str = one_of("final", ("final", "best"))
    pretraining_epochs: int = at_least(1, 0)
    tokenizer: str | None = None
    vocabulary: str = one_of("wordpiece", tuple(VOCABULARIES))
    vocab_size: int = at_least(1000, len(SPECIAL) + 1)
    types: list[str] | None = setting(
        None, "a list of types of spans that the data have, or null", lambda types: True
    )


class MaskedWords(TextTraining):
    """Cross-entropy of the pieces of masked words: a word is masked whole, or not at all.

    Devlin et al., arXiv:1810.04805, with whole words as of 2019. A batch is ids [B, L] and the word
    that each piece belongs to (-1: none).
    """

    network: MaskedLanguageModel

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return the loss of a batch, with words masked at random."""
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
        """Return the loss of a batch."""
        logits = self.network(batch["ids"]).flatten(0, 1)
        return cross_entropy(logits, batch["labels"].flatten(), ignore_index=_IGNORED)


@dataclass(frozen=True)
class Trained:
    """What both trainings leave in memory."""

    log: RunLog
    pretraining: Mapping[str, Any]  # what metrics.json says of it


@dataclass(frozen=True)
class LanguageTask:
    """An encoder to train, prepared: text, tokenizer and network."""

    settings: ClassVar[type[Section]] = LanguageSettings
    optimizer: ClassVar[type[Section]] = GradientDescent
    results_table = staticmethod(report.labelling_table)

    config: RunConfig[LanguageSettings, GradientDescent]
    dataset: TextDataset
    types: Sequence[str]  # of the spans that are learned
    tokenizer: Any
    arguments: Mapping[str, Any]  # of the network, with what the data decide
    network: TokenClassifier
    schedule: Schedule
    chunks: Sequence[Chunk]  # of the corpus, if masked words are learned
    fingerprint: str  # of the data

    @classmethod
    def prepare(cls, config: RunConfig[LanguageSettings, GradientDescent]) -> Self:
        """Read text and tokenizer, build the encoder; raises MatattnError for any mistake."""
        task, length = config.task, config.model.arguments.get("max_length")
        check_batches(config)
        if not isinstance(length, int) or length < 3:
            raise ConfigError(f"model.max_length={length!r}: expected at least 3")
        if config.init_from:
            raise ConfigError("init_from cannot start a training on text")
        import_extra("tokenizers")
        dataset: TextDataset = build(config.data, "data")
        types = _types(task, dataset)
        tokenizer = _tokenizer(task, dataset)
        chunks: list[Chunk] = []
        if task.pretraining_epochs:
            chunks = _chunks(tokenizer, dataset.corpus, length)
            if len(chunks) < 2:
                raise ConfigError(
                    f"{dataset.name}: the corpus makes {len(chunks)} chunk of text, and masked "
                    "words need 2, one of them held out: a longer corpus, or "
                    "task.pretraining_epochs=0"
                )
        schedule = build(config.optimizer.schedule, "optimizer.schedule")
        L.seed_everything(config.seed, workers=True, verbose=False)
        arguments = {
            **config.model.arguments,
            "vocab_size": tokenizer.get_vocab_size(),
            "num_labels": 1 + 2 * len(types),
        }
        network = build(Target(config.model.target, arguments), "model")
        return cls(
            config, dataset, types, tokenizer, arguments, network, schedule, chunks,
            dataset.fingerprint(),
        )  # fmt: skip

    def train(self, folder: Path) -> Trained:
        """Train on masked words, then on spans, from the last checkpoints in ``folder``."""
        pretraining = self._pretrain(folder / "pretraining")
        loaders = make_batches(self.config, self._texts, self._collate)
        return Trained(fit_texts(self.config, folder, self.module(folder), loaders), pretraining)

    def module(self, folder: Path) -> SpanLabels:
        """Return the training on spans; batches that cannot be used are told in ``folder``."""
        ids = [opening(sentence) for sentence in self._texts["train"]]
        return SpanLabels(self.network, self.config.optimizer, self.schedule, ids, folder)

    def data(self) -> Loaders:
        """Return the batches of the training on spans for a Trainer of one's own."""
        return Loaders(lambda: make_batches(self.config, self._texts, self._collate))

    @cached_property
    def _texts(self) -> dict[str, list[Sentence]]:
        """Return the sentences of training and validation, short enough for the network."""
        room = self.network.encoder.max_length - 2  # beside [CLS] and [SEP]
        return {
            split: [
                short
                for part in self._parts(split)
                for short in _fitting(self.tokenizer, room, part)
            ]
            for split in ("train", "val")
        }

    def _collate(self, sentences: Sequence[Sentence]) -> Batch:
        labels = {name: number for number, name in enumerate(_labels(self.types))}
        length = self.network.encoder.max_length
        return _collate_sentences(self.tokenizer, length, labels, sentences)

    def _parts(self, split: str) -> list[Sentence]:
        """Return the sentences of a split in parts that fit into a window of words."""
        sentences = self.dataset.of_split(split)
        return [part for s in sentences for part in parts(s, WINDOW, self.types)]

    def _pretrain(self, folder: Path) -> dict[str, Any]:
        """Learn masked words of the corpus: leaves the encoder with what it learned."""
        epochs, chunks = self.config.task.pretraining_epochs, self.chunks
        result = {"epochs": epochs, "lines": len(self.dataset.corpus)}
        if not epochs:
            return {**result, "held_out": 0, "loss": None, "seconds": 0.0}
        splits = {
            "train": [chunk for n, chunk in enumerate(chunks) if n % _HELD_OUT],
            "val": chunks[::_HELD_OUT],
        }
        ids = [f"chunk {number} of the corpus" for number in range(len(chunks))]
        model = MaskedLanguageModel(self.network.encoder)
        module = MaskedWords(model, self.config.optimizer, self.schedule, ids, folder)
        loaders = make_batches(self.config, splits, _collate_chunks)
        log = fit_texts(self.config, folder, module, loaders, epochs)
        loss, seconds = log.rows[-1]["val/loss"], round(log.seconds, 1)
        return {**result, "held_out": len(splits["val"]), "loss": loss, "seconds": seconds}

    def evaluate(self, folder: Path, trained: Trained) -> Outputs:
        """Return span scores beside those of a dictionary, and the model."""
        task, dataset, network = self.config.task, self.dataset, self.network
        splits = {split: self._parts(split) for split in SPLITS}
        description = {
            "labels": _labels(self.types),
            "vocabulary": {
                "name": task.vocabulary,
                "pieces": self.tokenizer.get_vocab_size(),
                "from": task.tokenizer,
            },
        }
        model = TextModel(network.cpu().eval(), description, self.tokenizer)
        model = replace(model, uncertainty=label_sets(model, splits["val"]))
        metrics: dict[str, Any] = {
            split: _scores(model, splits["train"], splits[split], self.types)
            for split in ("test", "val")
            if splits[split]
        }
        if found := coverage(model, splits["test"]):
            metrics["sets"] = found
        metrics["pretraining"] = trained.pretraining
        metrics["vocabulary"] = task.vocabulary
        metrics["parameters"] = sum(p.numel() for p in network.parameters())
        metrics["train_time_s"] = round(trained.log.seconds, 1)
        metrics["rows"] = {split: len(of_split) for split, of_split in splits.items()}
        return Outputs(
            metrics=metrics,
            network=network,
            arguments=self.arguments,
            description=description,
            data={"name": dataset.name, "fingerprint": self.fingerprint, "note": dataset.note},
            epochs=trained.log.epochs,
            template="text/language_model.md",
            report=report.labelling_values(self.config, dataset, metrics),
            figures={"loss.png": report.loss_plot(trained.log.rows)},
            uncertainty=model.uncertainty,
            bundle_files={"tokenizer.json": self.tokenizer.to_str()},
        )


def _types(task: LanguageSettings, dataset: TextDataset) -> list[str]:
    """Return the types of spans to learn; raises ConfigError for one that the data have not."""
    known = dataset.types()
    if task.types is None:
        types = known
    elif not task.types:
        raise ConfigError(f"task.types=[]: expected a list of {', '.join(known)}, or null")
    else:
        types = list(dict.fromkeys(task.types))
    if unknown := sorted(set(types) - set(known)):
        raise ConfigError(
            f"task.types: {dataset.name} has no spans of {', '.join(unknown)}; it has "
            f"{', '.join(known)}"
        )
    for split in ("train", "test"):
        if not any(s.of(types) for s in dataset.of_split(split)):
            raise ConfigError(f"{dataset.name}: no labelled span in its {split} sentences")
    return types


def _tokenizer(task: LanguageSettings, dataset: TextDataset) -> Any:
    """Return that of a tokenization run, or plain WordPiece made from the corpus."""
    if task.tokenizer is not None:
        folder = pretrained.find(task.tokenizer)
        if (network := bundle.describe(folder)["network"]) != "MaterialDetector":
            raise BundleError(
                f"{folder}: is a {network}; task.tokenizer takes the model/ folder of a run of "
                "model=matter"
            )
        return load_tokenizer(folder, VOCABULARIES[task.vocabulary])
    if task.vocabulary != "wordpiece":
        raise ConfigError(
            "task.vocabulary=matter needs task.tokenizer=RUN/model, the model/ folder of a run of "
            "model=matter"
        )
    tokenizer = make_tokenizer(train_vocabulary(count_plain(dataset.corpus), task.vocab_size))
    tokenizer.encode_special_tokens = True  # as ``load_tokenizer``
    return tokenizer


def _labels(types: Sequence[str]) -> list[str]:
    return ["O", *(f"{begin}-{name}" for name in types for begin in "BI")]


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
    """Return a sentence, or parts of it, of at most ``room`` pieces; one word may have more."""
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
    model: TextModel, train: Sequence[Sentence], held_out: Sequence[Sentence], types: Sequence[str]
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
