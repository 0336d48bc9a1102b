"""Many inputs become one stream of structures, the same with and without processes."""

import io
import json

import numpy as np
import pytest

from matattn.errors import MatattnError
from matattn.structures import stream as structure_stream
from matattn.structures.stream import StructureStream, find_sources

ROW = {"lattice": (4 * np.eye(3)).tolist(), "Z": [11, 17], "frac": [[0] * 3, [0.5] * 3]}
POSCAR = "salt\n4.0\n1 0 0\n0 1 0\n0 0 1\nNa Cl\n1 1\ndirect\n0 0 0\n.5 .5 .5\n"


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.vasp").write_text(POSCAR if number != 7 else "salt")
    (tmp_path / "20b.jsonl").write_text("\n".join(json.dumps(ROW | {"id": n}) for n in "xyz"))
    (tmp_path / "notes.txt").write_text("not a structure")
    return tmp_path


def ids(sources):
    with StructureStream(sources) as stream:
        return [entry.id for entry in stream], stream


def test_order_is_that_of_the_inputs_with_and_without_processes(folder, monkeypatch):
    sources = find_sources([str(folder)])
    here, stream = ids(sources)
    assert here == sorted({*(f"{n:02}" for n in range(40))} | {"x", "y", "z"} - {""},
                          key=lambda name: "20b" + name if name in "xyz" else name)  # fmt: skip
    assert stream.processes == 0 and stream.total is None and stream.seconds > 0
    monkeypatch.setattr(structure_stream, "WORTH_A_PROCESS", 20)
    monkeypatch.setattr(structure_stream, "cores", lambda: 2)
    monkeypatch.setattr(structure_stream, "_FILES_PER_TASK", 3)
    there, stream = ids(sources)
    assert there == here and stream.processes == 2 and stream.seconds > 0


def test_without_processes_the_stream_is_read_here(folder, monkeypatch):
    here, _ = ids(find_sources([str(folder)]))
    monkeypatch.setattr(structure_stream, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(structure_stream, "cores", lambda: 2)
    monkeypatch.setattr(structure_stream, "process_pool", lambda *_: None)
    alone, stream = ids(find_sources([str(folder)]))
    assert alone == here and stream.processes == 0


def test_an_abandoned_stream_ends_its_processes(folder, monkeypatch):
    monkeypatch.setattr(structure_stream, "WORTH_A_PROCESS", 1)
    with pytest.raises(KeyError), StructureStream(find_sources([str(folder)])) as stream:
        next(iter(stream))
        raise KeyError
    assert stream._pool is not None
    with pytest.raises(RuntimeError, match="after shutdown"):
        stream._pool.submit(print)


def test_a_process_that_was_killed_is_told(folder, monkeypatch):
    monkeypatch.setattr(structure_stream, "WORTH_A_PROCESS", 1)
    with StructureStream(find_sources([str(folder)] * 20)) as stream:
        assert stream._pool is not None
        for process in stream._pool._processes.values():
            process.kill()
        with pytest.raises(MatattnError, match="was killed; is memory short"):
            list(stream)


def test_few_structures_wait_in_memory(tmp_path, monkeypatch):
    """A stream reads as far ahead as it must, not everything."""
    read = []

    def lines():
        for number in range(1000):
            read.append(number)
            yield json.dumps(ROW)

    with StructureStream([lines()]) as stream:
        next(iter(stream))
    assert len(read) <= 2


def test_inputs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "odd[1].vasp").write_text(POSCAR)
    names = [str(source) for source in find_sources(["0[12].vasp", "odd[1].vasp", "absent.cif"])]
    assert names == ["01.vasp", "02.vasp", "odd[1].vasp", "absent.cif"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n 03.vasp\n-\n\n0[45].vasp\nmp-1\n"))
    names = [str(source) for source in find_sources(["-", "06.vasp"])]
    assert names == ["03.vasp", "04.vasp", "05.vasp", "mp-1", "06.vasp"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"\n {json.dumps(ROW)}\n{json.dumps(ROW)}\n{{"))
    names, _ = ids(find_sources(["-"]))
    assert names == ["-:1", "-:2", "-:3"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert find_sources(["-"]) == []


def test_a_folder_means_its_structures_and_not_the_outputs_that_repeat_them(tmp_path):
    outputs = ("CHGCAR", "XDATCAR", "vasprun.xml", "run.out", "notes.txt")
    for name in ("POSCAR", "CONTCAR", "x.cif.gz", *outputs):
        (tmp_path / name).write_text(POSCAR)
    names = [source.name for source in find_sources([str(tmp_path)])]
    assert names == ["CONTCAR", "POSCAR", "x.cif.gz"]
    assert find_sources([str(tmp_path / "CHGCAR")]) == [tmp_path / "CHGCAR"]
