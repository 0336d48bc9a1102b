"""``matattn tokenize``: the pieces of a text, and the materials in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_CHUNK = 256  # lines at once


def tokenize(
    model: Annotated[
        str, typer.Argument(help="The model/ folder of a run of model=matter or text_encoder.")
    ],
    text: Annotated[str, typer.Argument(help="A text, a UTF-8 file, or - for standard input.")],
    json_lines: Annotated[
        bool, typer.Option("--json", help="A JSON object for every line, for programs.")
    ] = False,
) -> None:
    """Show how a text is cut into pieces, and which materials (or other spans) it names.

    Every line is one text. A middle dot separates the pieces of a word; the spans are listed below,
    with their types and probabilities.
    """
    from matattn.errors import MatattnError

    try:
        _run(model, text, json_lines)
    except MatattnError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _run(model: str, text: str, json_lines: bool) -> None:
    import matattn
    from matattn.errors import BundleError
    from matattn.workflows.text.predict import TextModel

    lines, numbers = _lines(text)
    loaded = matattn.load(model)
    if not isinstance(loaded, TextModel):
        raise BundleError(
            f"{model}: this model reads no text; train one: python train.py model=matter"
        )
    for start in range(0, len(lines), _CHUNK):
        chunk = loaded.tokenize(lines[start : start + _CHUNK])
        for number, tagged in zip(numbers[start:], chunk, strict=False):
            if json_lines:
                print(_json(number, tagged))
            else:
                _show(tagged)


def _lines(text: str) -> tuple[list[str], list[int]]:
    """Return the lines that are not blank, and their numbers.

    They come from a file, from the standard input ("-"), or from the text itself. Raises DataError
    when there is none or they cannot be read.
    """
    from matattn.errors import DataError
    from matattn.text import check_encoding, read_text

    if text == "-":
        try:
            content = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"standard input: byte {error.start + 1} is not UTF-8; convert it, for example: "
                "iconv -f latin1 -t utf-8"
            ) from None
        check_encoding(content, "standard input")
    else:
        content = read_text(text) if _is_file(text) else text
    lines = {
        number: line.removesuffix("\r")
        for number, line in enumerate(content.split("\n"), 1)
        if line.strip()
    }
    if not lines:
        raise DataError("no text: give a text, a file, or - for standard input")
    return list(lines.values()), list(lines)


def _is_file(text: str) -> bool:
    """Return whether a text names a file or pipe; raise DataError for folders and lost files."""
    from matattn.errors import DataError

    path = Path(text)
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long for a name, or not one
        return False
    if not exists and len(text.split()) == 1 and (os.sep in text or text.endswith(".txt")):
        raise DataError(
            f"{text}: no such file; if it is a text, give it by standard input: "
            f"echo {text} | matattn tokenize MODEL -"
        )
    if exists and path.is_dir():
        raise DataError(f"{text}: is a folder; give a text, a UTF-8 file, or - for standard input")
    return exists


def _json(number: int, tagged: Any) -> str:
    import json

    pieces = [{"piece": piece, "start": a, "end": b} for piece, a, b in tagged.pieces]
    spans: list[dict[str, Any]] = [
        {"text": tagged.text[a:b], "start": a, "end": b, "type": kind, "probability": round(p, 4)}
        for a, b, kind, p in tagged.spans
    ]
    for span, types in zip(spans, tagged.sets, strict=False):
        span["types"] = list(types)
    content = {"line": number, "text": tagged.text, "pieces": pieces, "spans": spans}
    return json.dumps(content, ensure_ascii=False)


def _show(tagged: Any) -> None:
    """Print the pieces, those of spans in colour, and a list of the spans."""
    from rich.console import Console
    from rich.text import Text

    shown = Text()
    for piece, start, end in tagged.pieces:
        if shown:
            shown.append("·" if piece.startswith("##") else " ", style="dim")
        kinds = [kind for a, b, kind, _ in tagged.spans if a <= start and end <= b]
        shown.append(piece.removeprefix("##"), style="bold green" if kinds else "")
    console = Console()
    console.print(shown, soft_wrap=True)
    sets = tagged.sets or [()] * len(tagged.spans)
    for (start, end, kind, probability), types in zip(tagged.spans, sets, strict=True):
        line = f"  {tagged.text[start:end]}  {kind}  {probability:.2f}"
        if others := [other for other in types if other != kind]:
            line += f"  (or {', '.join(others)})"
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
