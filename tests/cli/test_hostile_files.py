"""Files made to hurt: each is refused in one line, runs nothing, and takes bounded memory.

Run as a script, this file prints the table: what was tried, how it ended, time and peak memory.
"""

import gzip
import json
import pickle
import resource
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODEL = "mp-band-gap"
CANARY = "canary"
MOST_MEMORY = 1.5  # GB of a process, with the libraries (0.4)
MOST_SECONDS = 60


class Payload:
    """Unpickling it writes the canary into the working folder."""

    def __reduce__(self):
        return (open, (CANARY, "w"))


def cif(cell, sites, operations=("x, y, z",)):
    angles = ("alpha", "beta", "gamma")
    lengths = "".join(
        f"_cell_length_{name} {cell}\n_cell_angle_{angle} 90\n"
        for name, angle in zip("abc", angles, strict=True)
    )
    symmetry = "loop_\n_symmetry_equiv_pos_as_xyz\n" + "".join(f"'{o}'\n" for o in operations)
    loop = "loop_\n_atom_site_type_symbol\n_atom_site_label\n" + "".join(
        f"_atom_site_fract_{x}\n" for x in "xyz"
    )
    rows = (site.split(maxsplit=1) for site in sites)
    atoms = "".join(f"{kind} X{n} {place}\n" for n, (kind, place) in enumerate(rows))
    return f"data_x\n{lengths}{symmetry}{loop}{atoms}"


def random_sites(count):
    places = np.random.default_rng(0).random((count, 3))
    return [f"Na {x:.6f} {y:.6f} {z:.6f}" for x, y, z in places]


def structure(name, text):
    """Return a case of ``matattn predict`` on one structure file."""

    def make(folder):
        (folder / name).write_text(text() if callable(text) else text)
        return ["predict", MODEL, name]

    return make


def zipped_line(folder):
    with gzip.open(folder / "line.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(2000):
            file.write(b" " * 10**6)
    return ["predict", MODEL, "line.jsonl.gz"]


def pickled_trajectory(folder):
    (folder / "old.traj").write_bytes(pickle.dumps(Payload()))
    return ["predict", MODEL, "old.traj"]


def module_in_json(folder):
    content = {"@module": "os", "@class": "system", "lattice": {"matrix": np.eye(3).tolist()},
               "sites": [{"species": [{"element": "Na", "occu": 1}], "abc": [0, 0, 0],
                          "properties": {"@module": "subprocess", "@class": "Popen"}}],
               "command": f"touch {CANARY}"}  # fmt: skip
    (folder / "module.json").write_text(json.dumps(content).replace("1.0", "0.01"))
    return ["predict", MODEL, "module.json"]


def pickle_as_model(folder):
    (folder / "model").mkdir()
    for name in ("model.safetensors", "config.json", "SHA256SUMS"):
        (folder / "model" / name).write_bytes(pickle.dumps(Payload()))
    return ["predict", "model", str(ROOT / "docs/examples/NaCl.cif")]


def huge_network(folder):
    from matattn import pretrained
    from matattn.files import sha256

    model = folder / "model"
    shutil.copytree(pretrained.find(MODEL), model)
    config = json.loads((model / "config.json").read_text())
    config["arguments"] |= {"dim": 80_000, "ffn_dim": 80_000}
    (model / "config.json").write_text(json.dumps(config))
    names = [line.split("  ")[1] for line in (model / "SHA256SUMS").read_text().splitlines()]
    (model / "SHA256SUMS").write_text("".join(f"{sha256(model / n)}  {n}\n" for n in names))
    return ["predict", "model", str(ROOT / "docs/examples/NaCl.cif")]


TRAIN = ["train", "model=crystalformer", "model.dim=8", "model.num_heads=2", "model.num_blocks=1",
         "trainer.max_epochs=1", "trainer.accelerator=cpu", "paths.output_dir=run"]  # fmt: skip
ROWS = [{"id": f"a{n}", "lattice": (4 * np.eye(3)).tolist(), "Z": [n + 3], "frac": [[0, 0, 0]],
         "alpha": n} for n in range(20)]  # fmt: skip
TABLE = ["data=crystals", "data.path=rows.jsonl", "data.targets=[alpha]", "data.units={alpha: eV}",
         "data.split=random"]  # fmt: skip


def training(*more):
    """Return a case of ``matattn train`` on a small table."""

    def make(folder):
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        return [*TRAIN, *TABLE, *more]

    return make


def with_pickle(*more):
    """Return a case of ``matattn train`` beside a pickle, which the command line names."""

    def make(folder):
        import torch

        torch.save(Payload(), folder / "evil.pt")
        return training(*more)(folder)

    return make


def checkpoint(content):
    """Return a case of a run folder that somebody else has filled."""

    def make(folder):
        arguments = training()(folder)
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments[1:]], cwd=folder,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder / "run" / "metrics.json").unlink()
        content(folder / "run")
        return arguments

    return make


def pickled_checkpoint(run):
    (run / "checkpoints" / "last.ckpt").write_bytes(pickle.dumps(Payload()))


def zipped_pickle_checkpoint(run):
    import torch

    torch.save({"state_dict": Payload()}, run / "checkpoints" / "last.ckpt")


def python_in_yaml(run):
    (run / "config.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {CANARY}']\n")


def aliases_in_yaml(run):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    (run / "config.yaml").write_text("\n".join(lines) + "\ndata_fingerprint: x\n")


def init_from_checkpoint(folder):
    (folder / "model").mkdir()
    (folder / "model" / "model.ckpt").write_bytes(pickle.dumps(Payload()))
    training()(folder)
    return ["train", "model=crystalformer", "init_from=model", "paths.output_dir=run", *TABLE]


def mesh_data(fill):
    def make(folder):
        (folder / "meshes").mkdir()
        fill(folder / "meshes")
        return ["train", "model=flare", "data=meshes", "data.path=meshes", "data.targets=[p]",
                "paths.output_dir=run"]  # fmt: skip

    return make


def pickle_in_npz(folder):
    content = np.array([Payload()], dtype=object)
    np.savez(folder / "a.npz", pos=content, p=content, allow_pickle=True)


def declared_npz(folder):
    """Return an archive whose array declares 80 GB."""
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000, 1), }"
    header = header.ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        for name in ("pos.npy", "p.npy"):
            archive.writestr(name, start + b"\0" * 800)


def entities_in_vtu(folder):
    entities = ['<!ENTITY e0 "aaaaaaaaaa">']
    entities += [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10)]
    text = f'<?xml version="1.0"?>\n<!DOCTYPE v [{"".join(entities)}]>\n'
    (folder / "a.vtu").write_text(text + '<VTKFile type="UnstructuredGrid">&e9;</VTKFile>')


def outside_file(folder):
    (folder / "rows.csv").write_text("id,alpha\n../../../../../etc/passwd,1\n/etc/passwd,2\n")
    return [*TRAIN, "data=table", "data.path=rows.csv", "data.targets=[alpha]",
            "data.units={alpha: eV}"]  # fmt: skip


def lmdb_row(content):
    """Return a case of ``matattn predict`` on a row in LMDB."""

    def make(folder):
        import lmdb

        with lmdb.open(str(folder / "a.aselmdb"), subdir=False, map_size=2**28, lock=False) as data:
            with data.begin(write=True) as change:
                change.put(b"1", content())
        return ["predict", MODEL, "a.aselmdb"]

    return make


def parquet_bomb(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": ["a"], "Z": pa.array([np.zeros(50_000_000, dtype=np.int64)])})
    pq.write_table(table, folder / "a.parquet")
    return ["predict", MODEL, "a.parquet"]


CASES = {
    "CIF, 1,000,000 atoms": structure("a.cif", lambda: cif(1000, random_sites(10**6))),
    "CIF, 20,000 sites x 192 operations": structure("a.cif", lambda: cif(
        1000, random_sites(20_000), [f"x+{n}/193, y, z" for n in range(192)])),
    "CIF, 9,000 sites in space group 225 by name": structure("a.cif", lambda: cif(
        1000, random_sites(9_000), ()).replace(
            "loop_\n_symmetry_equiv_pos_as_xyz\n", "_symmetry_space_group_name_H-M 'F m -3 m'\n")),
    "CIF, 9,000 atoms in one place": structure("a.cif", lambda: cif(
        1000, [f"Na {x:.6f} {y:.6f} {z:.6f}"
               for x, y, z in 0.02 * np.random.default_rng(0).random((9_000, 3))])),
    "CIF, cell of 1e9 Å": structure("a.cif", cif(1e9, ["Na 0 0 0", "Cl 0.5 0.5 0.5"])),
    "CIF, cell of 1e-9 Å": structure("a.cif", cif(1e-9, ["Na 0 0 0"])),
    "CIF, cell of 1e300 Å": structure("a.cif", cif(1e300, ["Na 0 0 0"])),
    "CIF, cell of nan": structure("a.cif", cif("nan", ["Na 0 0 0"])),
    "POSCAR, coordinate 1e300": structure(
        "POSCAR", "x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n1\nDirect\n1e300 0 0\n"),
    "extended XYZ, flat molecule of 9,999 Å": structure(
        "a.extxyz", "3\n\nNa 0 0 0\nNa 9999 0 0\nNa 0 9999 0\n"),
    "extended XYZ, molecule of 1e200 Å": structure(
        "a.extxyz", "2\n\nNa 0 0 0\nNa 1e200 0 0\n"),
    "CIF, coordinate 1e300": structure("a.cif", cif(4, ["Na 0 0 0", "Cl 1e300 0 0"])),
    "CIF, name of the element is code": structure("a.cif", cif(
        4, [f"__import__('os').system('touch_{CANARY}') 0 0 0"])),
    "POSCAR, 1e9 atoms declared": structure(
        "POSCAR", "x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n1000000000\nDirect\n0 0 0\n"),
    "extended XYZ, 1e9 atoms declared": structure(
        "a.extxyz", '1000000000\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\n'
        "Na 0 0 0\n"),
    "JSON, 100,000 levels": structure("a.json", "[" * 100_000),
    "JSON, number of 1,000,000 digits": structure(
        "a.json", '{"lattice": [[' + "9" * 10**6 + ',0,0],[0,4,0],[0,0,4]], "Z": [3], '
        '"frac": [[0,0,0]]}'),
    "JSON that names modules": module_in_json,
    "JSON lines, 2 GB of blanks in 2 MB": zipped_line,
    "pickle as an ASE trajectory": pickled_trajectory,
    "pickles as a model": pickle_as_model,
    "model of 50 GB in config.json": huge_network,
    "pickle as a checkpoint": checkpoint(pickled_checkpoint),
    "pickle in a torch archive": checkpoint(zipped_pickle_checkpoint),
    "pickle to start from": init_from_checkpoint,
    "config.yaml that calls os.system": checkpoint(python_in_yaml),
    "config.yaml with 10^10 aliases": checkpoint(aliases_in_yaml),
    "_target_=builtins.open": training("model._target_=builtins.open", "+model.file=canary"),
    "_target_ below the schedule": training("optimizer.schedule._target_=os.system"),
    "_target_ that a module imports": with_pickle(
        "+trainer.strategy={_target_: lightning.pytorch.strategies.ddp.torch.load, f: evil.pt, "
        "weights_only: false}"),
    "_target_ in an interpolation": with_pickle(
        "+trainer.strategy='\\${oc.create:{_target_: torch.load, f: evil.pt, "
        "weights_only: false}}'"),
    "callback in the trainer": training("+trainer.callbacks=[{_target_: os.system}]"),
    "table with ../ in its ids": outside_file,
    "aselmdb with a pickle": lmdb_row(lambda: pickle.dumps(Payload())),
    "aselmdb that unpacks to 2 GB": lmdb_row(lambda: zlib.compress(bytes(2**31))),
    "Parquet with 50 million numbers in a row": parquet_bomb,
    "npz with a pickle": mesh_data(pickle_in_npz),
    "npz that declares 80 GB": mesh_data(declared_npz),
    "VTU with 10^10 entities": mesh_data(entities_in_vtu),
}  # fmt: skip


# A small program that starts the command and measures it: a child's peak memory includes that of
# its parent at the start, and a test process may be a large one, with threads that forbid a fork.
MEASURED = f"""
import json, resource, subprocess, sys
program = [sys.executable, "-c", "from matattn.cli import main; main()", *sys.argv[1:]]
with open("stdout", "w") as stdout, open("stderr", "w") as stderr:
    status = subprocess.call(program, stdout=stdout, stderr=stderr, timeout={3 * MOST_SECONDS})
memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
print(json.dumps({{"status": status, "memory": memory}}))
"""


def attempt(folder, make):
    """Exit status, last line, seconds and peak memory (GB) of a case, in a process of its own."""
    arguments = make(folder)
    begin = time.perf_counter()
    measured = subprocess.check_output([sys.executable, "-c", MEASURED, *arguments], cwd=folder)
    seconds = time.perf_counter() - begin
    lines = []
    for stream in ("stdout", "stderr"):
        lines += (folder / stream).read_text().strip().splitlines()
    traceback = any(line.startswith("Traceback") for line in lines)
    told = next((line for line in lines if line.startswith("error")), "")
    if lines[-1:] and lines[-1].startswith("0 of 1"):
        told = lines[-2]  # the row of the table
    return json.loads(measured) | {
        "told": "TRACEBACK " + lines[-1] if traceback else told or "".join(lines[-1:]),
        "seconds": seconds,
        "canary": (folder / CANARY).exists(),
    }


@pytest.mark.share(3)
@pytest.mark.parametrize("name", CASES)
def test_refused_in_bounds(tmp_path, name):
    outcome = attempt(tmp_path, CASES[name])
    assert outcome["status"] in (1, 2) and not outcome["canary"], outcome
    assert outcome["told"] and not outcome["told"].startswith("TRACEBACK"), outcome
    assert outcome["memory"] < MOST_MEMORY and outcome["seconds"] < MOST_SECONDS, outcome


def main():
    import tempfile

    print("| file | exit | s | peak GB | canary | told |\n|---|---|---|---|---|---|")
    names = [name for name in CASES if not sys.argv[1:] or sys.argv[1] in name]
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            row = attempt(Path(directory), CASES[name])
            print(
                f"| {name} | {row['status']} | {row['seconds']:.1f} | {row['memory']:.2f} | "
                f"{'YES' if row['canary'] else 'no'} | {row['told'][:230]} |",
                flush=True,
            )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (40 * 2**30, 40 * 2**30))
    main()
