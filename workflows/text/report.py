"""What a finished run on text shows to people: tables, plots, values of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from matattn.config import RunConfig
from matattn.runtime import machine
from matattn.text import TextDataset
from matattn.workflows import reporting

_DETECTOR = {
    "word_f1": "word F1",
    "word_precision": "precision",
    "word_recall": "recall",
    "span_f1": "span F1",
    "typed_span_f1": "span F1, name or formula right",
    "dictionary_word_f1": "dictionary: word F1",
    "dictionary_span_f1": "dictionary: span F1",
}
_VOCABULARY = {
    "material_whole_words": "whole words of materials",
    "material_whole_mentions": "whole materials",
    "material_whole_types": "whole types",
    "material_fertility": "pieces a word",
    "general_whole_words": "other words whole",
    "general_fertility": "pieces an other word",
}
_LABELLING = {"span_f1": "span F1", "precision": "precision", "recall": "recall"}


def vocabulary_table(metrics: Mapping[str, Any]) -> Table:
    """Return the final table of a tokenization: what vocabularies do to words of materials."""
    rows = [
        [_named(row), *(f"{row[key]:.3f}" for key in _VOCABULARY)]
        for row in metrics["vocabularies"]
    ]
    title, header = (
        "Words of materials in the test sentences",
        ["vocabulary", *_VOCABULARY.values()],
    )
    table = reporting.text_table(title, header, rows, left=header[:1])
    scores = metrics["test"]["detector"]
    table.caption = (
        f"detector on test sentences: word F1 {scores['word_f1']:.3f}, span F1 "
        f"{scores['span_f1']:.3f}; a dictionary of the training words: "
        f"{scores['dictionary_word_f1']:.3f}, {scores['dictionary_span_f1']:.3f}"
    )
    return table


def _named(row: Mapping[str, Any]) -> str:
    if row["encoding"] == "bpe":
        return f"{row['size']:,} BPE"
    name = "WordPiece" if row["strength"] == 0 else f"MATTER, lambda {row['strength']:g}"
    return f"{row['size']:,} {name}"


def labelling_table(metrics: Mapping[str, Any]) -> Table:
    """Return the final table of an encoder: scores of every split and type of spans."""
    header, rows = _labelling(metrics)
    return reporting.text_table("Labelled spans", header, rows, left=header[:2])


def _labelling(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [split, kind, *(f"{score[key]:.3f}" for key in _LABELLING), str(score["n"])]
        for split in ("test", "val")
        for kind, score in metrics.get(split, {}).items()
    ]
    return ["split", "spans of", *_LABELLING.values(), "spans"], rows


def loss_plot(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw training and validation loss over the epochs."""
    labels = {"train/loss": "training", "val/loss": "validation"}
    return reporting.loss_plot([rows], labels, "cross-entropy")


def vocabulary_plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what lambda gives to words of materials, and what it costs other words."""
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for size in sorted({row["size"] for row in rows}):
        chosen = [r for r in rows if r["size"] == size and r["encoding"] == "wordpiece"]
        cost = [row["general_fertility"] for row in chosen]
        gain = [row["material_whole_words"] for row in chosen]
        axes.plot(cost, gain, "o-", label=f"{size:,} pieces")
        for x, y, row in zip(cost, gain, chosen, strict=True):
            axes.annotate(f"{row['strength']:g}", (x, y), xytext=(4, 4), fontsize=8,
                          textcoords="offset points")  # fmt: skip
    axes.set(xlabel="pieces for a word that is no material",
             ylabel="words of materials in one piece")  # fmt: skip
    axes.legend(title="numbers: lambda")
    return figure


def vocabulary_values(
    config: RunConfig, dataset: TextDataset, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the report of a tokenization says."""
    detector = [
        [split, *(f"{metrics[split]['detector'][key]:.3f}" for key in _DETECTOR)]
        for split in ("test", "val")
        if split in metrics
    ]
    vocabularies = [
        [
            _named(row), *(f"{row[key]:.3f}" for key in _VOCABULARY), f"{row['pieces']:,}",
            f"{row['shared_with_wordpiece']:,}",
        ]
        for row in metrics["vocabularies"]
    ]  # fmt: skip
    spelled = metrics["examples"]
    examples = [
        [word, *(" ".join(f"`{piece}`" for piece in spelled[name][word])
                 for name in ("wordpiece", "matter"))]
        for word in spelled["matter"]
    ]  # fmt: skip
    return {
        **_run_values(config, dataset),
        "title": f"Tokenization of {dataset.name}, seed {config.seed}",
        "detector": (["split", *_DETECTOR.values()], detector),
        "vocabularies": (
            ["vocabulary", *_VOCABULARY.values(), "pieces", "shared with WordPiece"], vocabularies,
        ),
        "examples": (["word", "WordPiece", f"MATTER, lambda {config.task.strength:g}"], examples),
    }  # fmt: skip


def labelling_values(
    config: RunConfig, dataset: TextDataset, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the report of an encoder says."""
    return {
        **_run_values(config, dataset),
        "title": f"Spans in {dataset.name} with {metrics['vocabulary']}, seed {config.seed}",
        "labelling": _labelling(metrics),
    }


def _run_values(config: RunConfig, dataset: TextDataset) -> dict[str, Any]:
    return {"dataset": dataset, "machine": machine(config.accelerator)}
