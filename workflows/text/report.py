"""What a finished run on text shows to people: tables, plots, report, model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

import matattn
from matattn.citations import LICENCES
from matattn.runtime import machine
from matattn.text import TextDataset
from matattn.workflows.reporting import save_figure
from matattn.workflows.reporting import without_pictures as card_text

__all__ = ["card_text", "language_report", "loss_plot", "results_table", "tokenization_report",
           "vocabulary_plot"]  # fmt: skip

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


def results_table(metrics: dict[str, Any]) -> Table:
    """The final table of a run on text: what was found in its test (or validation) sentences."""
    if "vocabularies" not in metrics:
        return _labelling_table(metrics)
    table = Table(title="Words of materials in the test sentences")
    for column in ("vocabulary", *_VOCABULARY.values()):
        table.add_column(column, justify="left" if column == "vocabulary" else "right")
    for row in metrics["vocabularies"]:
        table.add_row(_named(row), *(f"{row[key]:.3f}" for key in _VOCABULARY))
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


def _labelling_table(metrics: dict[str, Any]) -> Table:
    table = Table(title="Labelled spans")
    for column in ("split", "spans of", *_LABELLING.values(), "spans"):
        table.add_column(column, justify="left" if column in ("split", "spans of") else "right")
    for split in ("test", "val"):
        for kind, score in metrics.get(split, {}).items():
            values = (f"{score[key]:.3f}" for key in _LABELLING)
            table.add_row(split, kind, *values, str(score["n"]))
    return table


def loss_plot(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Training and validation loss over the epochs."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("train/loss", "training"), ("val/loss", "validation")):
        if shown := [(row["epoch"], row[key]) for row in rows if key in row]:
            axes.plot(*zip(*shown, strict=True), ".-", label=label)
    axes.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    axes.legend()
    save_figure(figure, path)


def vocabulary_plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """What lambda gives to words of materials, and what it costs other words."""
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
    save_figure(figure, path)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _run_lines(config: dict[str, Any], dataset: TextDataset, metrics: dict[str, Any]) -> list[str]:
    rows = ", ".join(f"{split} {count:,}" for split, count in metrics["rows"].items())
    return [
        "## Run",
        "",
        f"- {metrics['parameters']:,} trainable parameters, {metrics['train_time_s']:.0f} s of "
        f"training; machine: {machine(config['trainer']['accelerator'])}",
        f"- sentences: {rows}; left out: {len(dataset.skipped)}",
        *(f"  - {message}" for message in dataset.skipped[:10]),
        f"- data: {dataset.note}",
        f"- licence of the data: {LICENCES.get(dataset.name, 'see their source')}",
        f"- matattn {matattn.__version__}; configuration: config.yaml",
        "",
    ]


def tokenization_report(
    config: dict[str, Any], dataset: TextDataset, metrics: dict[str, Any], model: str
) -> str:
    """report.md of a tokenization run, whose bundle is ``model``."""
    detector = [
        [split, *(f"{metrics[split]['detector'][key]:.3f}" for key in _DETECTOR)]
        for split in ("test", "val")
        if split in metrics
    ]
    vocabularies = [
        [_named(row), *(f"{row[key]:.3f}" for key in _VOCABULARY), f"{row['pieces']:,}",
         f"{row['shared_with_wordpiece']:,}"]
        for row in metrics["vocabularies"]
    ]  # fmt: skip
    task, corpus = config["task"], metrics["corpus"]
    ours = f"MATTER, lambda {task['strength']:g}"
    examples = [
        [word, *(" ".join(f"`{piece}`" for piece in metrics["examples"][name][word])
                 for name in ("wordpiece", "matter"))]
        for word in metrics["examples"]["matter"]
    ]  # fmt: skip
    return "\n".join([
        f"# Tokenization of {dataset.name}, seed {config['seed']}",
        "",
        "## Detector",
        "",
        "On sentences that it was not trained on, beside a dictionary of the words that are mostly "
        "materials in the training sentences:",
        "",
        *_table(("split", *_DETECTOR.values()), detector),
        "",
        f"In the corpus ({corpus['lines']:,} lines, {corpus['words']:,} words, {corpus['types']:,} "
        f"types) it takes {corpus['material_words']:,} words for materials: frequencies.csv.",
        "",
        "## Vocabulary",
        "",
        "Words of labelled materials in the test sentences (with a letter; whole: in one piece), "
        "and the 20,000 most frequent other words of the corpus:",
        "",
        *_table(("vocabulary", *_VOCABULARY.values(), "pieces", "shared with WordPiece"),
                vocabularies),
        "",
        *_table(("word", "WordPiece", ours), examples),
        "",
        "Gains on words of the corpus that the detector found are not gains on a task: "
        "`task=language_model` measures these.",
        "",
        "![vocabularies](vocabularies.png)",
        "![loss](loss.png)",
        "",
        *_run_lines(config, dataset, metrics),
        "## Use",
        "",
        "```",
        f'matattn tokenize {model} "LiNi0.8Co0.15Al0.05O2 and germanium"',
        "```",
        "",
        "`model/tokenizer.json` loads in tokenizers and in transformers' PreTrainedTokenizerFast; "
        "`model/wordpiece.json` is the plain vocabulary of the same size.",
        "",
    ])  # fmt: skip


def language_report(config: dict[str, Any], dataset: TextDataset, metrics: dict[str, Any]) -> str:
    """report.md of a language-model run."""
    rows = [
        [split, kind, *(f"{score[key]:.3f}" for key in _LABELLING), str(score["n"])]
        for split in ("test", "val")
        for kind, score in metrics.get(split, {}).items()
    ]
    masked = metrics["pretraining"]
    return "\n".join([
        f"# Spans in {dataset.name} with {metrics['vocabulary']}, seed {config['seed']}",
        "",
        *_table(("split", "spans of", *_LABELLING.values(), "spans"), rows),
        "",
        f"Before that, masked words: cross-entropy {masked['loss']:.3f} on {masked['held_out']:,} "
        f"held-out chunks of {masked['lines']:,} corpus lines after {masked['epochs']} epochs "
        f"({masked['seconds']:.0f} s)."
        if masked["epochs"]
        else "Nothing was learned from masked words before that.",
        "One seed: differences between vocabularies need at least three.",
        "",
        "![loss](loss.png)",
        "",
        *_run_lines(config, dataset, metrics),
    ])  # fmt: skip
