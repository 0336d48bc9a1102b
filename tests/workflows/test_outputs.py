"""What a run writes is known by name, so that clearing its folder finds it."""

import pytest
from matplotlib.figure import Figure

from matattn.workflows import outputs


def made(**named):
    values = dict.fromkeys(("metrics", "arguments", "description", "data", "report"), {})
    return outputs.Outputs(network=[], epochs=1, template="", **values, **{"figures": {}, **named})


@pytest.mark.parametrize(
    "named",
    [
        {"figures": {"loss.svg": Figure()}},
        {"tables": {"loss.svg": []}},
        {"documents": {"loss.svg": {}}},
    ],
)
def test_a_name_that_would_not_be_cleared_is_refused(tmp_path, named):
    with pytest.raises(ValueError, match="loss.svg is not among the files that a run writes"):
        outputs.write(tmp_path, None, made(**named))
    assert not any(tmp_path.iterdir())


def test_clearing_keeps_what_no_run_writes(tmp_path):
    for name in (*outputs.WRITTEN, "config.yaml", "notes.txt", "figures"):
        path = tmp_path / name.replace("*", "0")
        if "." in name:
            path.write_text("")
        else:
            path.mkdir()
            (path / "file").write_text("")
    outputs.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "figures"}


def test_the_record_goes_last(tmp_path, monkeypatch):
    """A folder that is half cleared is still a run, and no finished one."""
    for name in ("metrics.json", "report.md", "config.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(outputs, "RECORD", "none")
    outputs.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert outputs.WRITTEN[0] == "metrics.json"
