"""Models of text: pieces and spans of any line, and bundles that are damaged."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import matattn
from matattn import bundle
from matattn.cli import app
from matattn.datasets.text_formats import read_conll
from matattn.errors import BundleError, DataError
from matattn.workflows.text import predict
from matattn.workflows.text.predict import MARGIN, WINDOW, TextModel, cut
from matattn.workflows.text.tokenization import as_materials


def test_model_finds_pieces_and_spans(tokenized):
    model = matattn.load(tokenized[0] / "model")
    assert isinstance(model, TextModel)
    text = "films of GaAs were grown"
    tagged, empty = model.tokenize([text, ""])
    assert "".join(piece.removeprefix("##") for piece, _, _ in tagged.pieces) == (
        text.replace(" ", "").lower()
    )
    ((start, end, kind, probability),) = tagged.spans
    assert (text[start:end], kind) == ("GaAs", "formula") and 0.4 < probability <= 1
    assert empty.pieces == [] and empty.spans == []


@pytest.mark.parametrize("kind", ["tokenized", "labelled"])
def test_spans_have_sets_of_types(kind, request, sentences, tmp_path):
    """Made of spans that the model finds; kept in a bundle; empty without them."""
    folder, metrics = request.getfixturevalue(kind)
    model = matattn.load(folder / "model")
    given = read_conll(sentences / "labelled.txt", "val")
    if kind == "tokenized":
        given = [as_materials(sentence, ["MAT"]) for sentence in given]
    known = replace(model, uncertainty=predict.label_sets(model, given))
    assert known.uncertainty is not None
    shares = predict.coverage(known, given)
    assert shares["in_set"] >= 0.9 and 1 <= shares["size"] < len(model.types)
    text = "films of GaAs were grown"
    (tagged,) = known.tokenize(text)
    ((_, _, found, _),) = tagged.spans
    assert tagged.sets[0][0] == found and set(tagged.sets[0]) <= {*model.types}
    assert replace(model, uncertainty=None).tokenize(text)[0].sets == []
    assert predict.label_sets(model, given[:3]) is None
    (network,), config, _ = bundle.load(folder / "model")
    left = {key: value for key, value in config.items()
            if key not in ("format", "network", "arguments", "uncertainty")}  # fmt: skip
    tokenizer = (folder / "model" / "tokenizer.json").read_text()
    bundle.save(tmp_path / "model", network, config["arguments"], left, "", known.uncertainty,
                {"tokenizer.json": tokenizer})  # fmt: skip
    assert matattn.load(tmp_path / "model").tokenize(text) == [tagged]
    result = CliRunner().invoke(app, ["tokenize", "--json", str(tmp_path / "model"), text])
    (span,) = json.loads(result.stdout)["spans"]
    assert span["types"] == list(tagged.sets[0])


def test_long_lines_are_never_cut(tokenized):
    """Words far down a long line are found as in a short one."""
    model = matattn.load(tokenized[0] / "model")
    sentence = "films of GaAs were grown here . "
    long = model.tokenize(60 * sentence)[0]
    found = [start for start, end, *_ in long.spans if long.text[start:end] == "GaAs"]
    assert found == [len(sentence) * n + len("films of ") for n in range(60)]
    assert len(long.pieces) == 60 * len(model.tokenize(sentence)[0].pieces)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300, 1000])
def test_windows_answer_for_every_word_once(count):
    owned = [place for _, _, low, high in cut([1] * count) for place in range(low, high)]
    assert owned == list(range(count))
    for start, end, low, high in cut([1] * count):
        assert start == 0 or low - start == MARGIN
        assert end == count or end - high == MARGIN


@pytest.mark.parametrize("room", [1, 2, 7, 8, 126, 1000])
def test_windows_of_pieces_show_every_word(room):
    sizes = [int(n) for n in np.random.default_rng(room).choice([0, 1, 1, 3, 40], 700)]
    windows = list(cut(sizes, room))
    assert [n for _, _, low, high in windows for n in range(low, high)] == list(range(700))
    for start, end, low, high in windows:
        assert end - start <= WINDOW and start <= low < high <= end
        assert sum(sizes[start : high - 1]) < room  # the last word's first piece is seen


def test_names_of_special_tokens_are_plain_text(tokenized, labelled):
    for folder in (tokenized[0], labelled[0]):
        tagged = matattn.load(folder / "model").tokenize("of [MASK]")[0]
        assert len(tagged.pieces) > 2 and "[MASK]" not in [piece for piece, *_ in tagged.pieces]


def test_text_that_is_no_unicode_is_named(tokenized):
    with pytest.raises(DataError, match="text 2: character 1 is U[+]DCFF"):
        matattn.load(tokenized[0] / "model").tokenize(["a", "\udcff abc"])


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_damaged_files_are_refused(tokenized, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(tokenized[0] / "model", folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    with pytest.raises(BundleError, match=f"{name}: checksum differs"):
        matattn.load(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        matattn.load(folder)


def test_sums_name_files_of_the_folder_only(tokenized, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tokenized[0] / "model", folder)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../../secret\n")
    with pytest.raises(BundleError, match="'../../secret' is no file name"):
        matattn.load(folder)


def test_tokenizer_file_that_is_none(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizer.json: cannot be read"):
        predict.load_tokenizer(tmp_path)


@pytest.mark.parametrize("run", ["tokenized", "labelled"])
def test_how_torch_is_set_does_not_matter(run, request, unusual_torch):
    folder = request.getfixturevalue(run)[0] / "model"
    loaded = matattn.load(folder)
    expected = loaded.tokenize("films of GaAs were grown")
    with unusual_torch():
        for model in (loaded, matattn.load(folder)):
            assert model.tokenize("films of GaAs were grown") == expected
