"""Faults at random moments: processes killed with -9, full disks, folders that cannot be written,
wrong bits. Each is detected, rebuilt or refused, and nothing is lost.

Run as a script, this file tries them more often than as a test, and prints the table: what was
tried, how often, and what was lost.
"""

import csv
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from matattn import bundle, cache, download, pretrained
from matattn.errors import BundleError, TrainingError
from matattn.training.checkpoint_files import AtomicCheckpoints, read

THOROUGH = __name__ == "__main__"
ROOT = Path(__file__).parents[2]
MODEL = "mp-band-gap"
SALT = str(ROOT / "docs/examples/NaCl.cif")
FULL = "cannot be written: No space left on device"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SETTINGS = ["trainer.accelerator=cpu", "paths.output_dir=run"]
SMALL = ["model.dim=16", "model.num_heads=2", "model.num_blocks=1"]
# The rate is so high that the best epoch is not the last one.
CRYSTALS = ["model=crystalformer", *SMALL, "data=crystals", "data.path=rows.jsonl",
            "data.targets=[alpha]", "data.units={alpha: eV}", "data.split=random",
            "task.batch_size=16", "task.select=best", "optimizer.lr=0.03",
            "optimizer.schedule.warmup=1"]  # fmt: skip
MESHES = ["model=flare", *SMALL, "model.num_latents=8", "data=meshes", "data.path=meshes",
          "data.targets=[alpha]", "task.batch_size=2"]  # fmt: skip
SPINS = ["model=wavefunction", "model.dim=8", "model.num_heads=2", "model.num_layers=1",
         "task.samples=128", "task.chains=16", "task.final_samples=256",
         "task.symmetrized_samples=0", "task.attention_samples=64"]  # fmt: skip
TEXT = ["model=text_encoder", *SMALL, "model.max_length=32", "model.ffn_dim=16",
        "data=text_files", "data.corpus=corpus.txt", "data.labelled=labelled.txt",
        "task.vocab_size=60", "task.pretraining_epochs=2"]  # fmt: skip


def damaged(whole, generator, begin=0):
    """A copy of bytes with one wrong bit, from ``begin`` on."""
    content = bytearray(whole)
    content[int(generator.integers(begin, len(whole)))] ^= 1 << int(generator.integers(8))
    return bytes(content)


def python(program, *arguments, **options):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, **options)


@contextmanager
def disk(folder, size):
    """A disk of its own at ``folder``, so many kB large."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


# Whole trainings


def rows(folder):
    generator = np.random.default_rng(0)
    lattices = [((3 + n % 7 / 7) * np.eye(3)).tolist() for n in range(200)]
    content = [{"id": f"a{n}", "lattice": lattice,
                "frac": [[0, 0, 0]], "Z": [n % 50 + 3], "alpha": float(generator.normal())}
               for n, lattice in enumerate(lattices)]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, content)))


def meshes_and_text(folder):
    generator = np.random.default_rng(0)
    (folder / "meshes").mkdir()
    for n in range(20):
        np.savez(
            folder / f"meshes/{n}.npz", pos=generator.random((30, 2)), alpha=generator.random(30)
        )
    places = range(0, 200)
    (folder / "corpus.txt").write_text("\n".join(f"films of ZnO were grown {n}" for n in places))
    labelled = "films O\nof O\nZnO B-MAT\nwere O\ngrown{} O\n"
    (folder / "labelled.txt").write_text("\n".join(labelled.format(n) for n in places))


TRAIN = "from matattn.cli.train import main; main()"


def train(folder, *more, program=TRAIN, first=()):
    return python(program, *first, *SETTINGS, *more, cwd=folder,
                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def finish(folder, *more):
    """Train to the end, and what is left: weights, predictions, and the table of the epochs."""
    process = train(folder, *more)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    run = folder / "run"
    assert not list(run.rglob(".*.partial"))
    with open(run / "metrics.csv") as table:
        epochs = [{**row, "seconds": None} for row in csv.DictReader(table)]
    weights = (run / "model" / "model.safetensors").read_bytes()
    predictions = run / "predictions.csv"
    return weights, predictions.read_bytes() if predictions.exists() else None, epochs


def killed_training(folder, settings, times):
    """The same command until it finishes, killed in between."""
    generator = np.random.default_rng(0)
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        rows(folder / name)
        meshes_and_text(folder / name)
    begin = time.monotonic()
    with train(folder / "whole", *settings) as process:
        process.stdout.readline()
        started = time.monotonic() - begin
        process.communicate(timeout=300)
    seconds = time.monotonic() - begin - started
    whole = finish(folder / "whole", *settings)  # reads it: the run is finished
    killed = lost = 0
    while killed < times:
        with train(folder / "killed", *settings) as process:
            process.stdout.readline()  # the run begins: random moments until its end
            time.sleep(float(generator.uniform(0, seconds)))
            process.kill()
            process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            lost += finish(folder / "killed", *settings) != whole
            shutil.rmtree(folder / "killed" / "run")
    return killed, lost + (finish(folder / "killed", *settings) != whole)


# Kills itself before the file number argv[1] gets its name.
KILLED_BEFORE_A_FILE = """
import os, signal, sys
left, rename = int(sys.argv.pop(1)), os.replace
def replace(*paths):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    rename(*paths)
os.replace = replace
from matattn.cli.train import main
main()
"""


def killed_before_each_file(folder):
    """The first of the two epochs is the best, and its checkpoint is not written again."""
    (folder / "whole").mkdir()
    rows(folder / "whole")
    settings = *CRYSTALS, "trainer.max_epochs=2"
    whole, tried, lost = finish(folder / "whole", *settings), 0, 0
    for number in range(0, 1000, 1 if THOROUGH else 4):
        shutil.rmtree(folder / "killed", ignore_errors=True)
        (folder / "killed").mkdir()
        rows(folder / "killed")
        process = train(folder / "killed", *settings, program=KILLED_BEFORE_A_FILE, first=[number])
        _, said = process.communicate(timeout=300)
        if process.returncode == 0:  # it has no more files
            break
        assert process.returncode == -signal.SIGKILL, said
        lost += finish(folder / "killed", *settings) != whole
        tried += 1
    return tried, lost


def full_disk_in_training(folder):
    """A disk that grows from nothing: one line that names a file, and what was there stays."""
    (folder / "whole").mkdir()
    rows(folder / "whole")
    settings = *CRYSTALS, "trainer.max_epochs=3"
    whole = finish(folder / "whole", *settings)
    tried = lost = 0
    with disk(folder / "full", 64):
        rows(folder / "full")
        last, done = folder / "full" / "run" / "checkpoints" / "last.ckpt", None
        for size in range(64, 4000, 60 if THOROUGH else 300):
            remount(folder / "full", f"size={size}k")
            process = train(folder / "full", *settings)
            _, said = process.communicate(timeout=300)
            if process.returncode == 0:
                break
            told = said.strip().splitlines()[-1]
            one_line = told.startswith("error: ") and "run/" in told and told.endswith(FULL)
            tried += 1
            lost += process.returncode != 2 or not one_line or "Traceback" in said
            lost += bool(list((folder / "full" / "run").rglob(".*.partial")))
            if done is not None or last.exists():
                epoch = read(last)["epoch"]
                lost += done is not None and epoch < done
                done = epoch
        return tried, lost + (finish(folder / "full", *settings) != whole)


# Checkpoints

SAVING = """
import sys, torch
from matattn.training.checkpoint_files import AtomicCheckpoints
step = 0
while True:
    step += 1
    state = {"step": step, "weights": torch.full((500_000,), float(step))}
    AtomicCheckpoints().save_checkpoint(state, sys.argv[1])
    print(step, flush=True)
"""


def killed_while_it_saves(folder, times=20):
    """The checkpoint is always the last one, or the one before."""
    path, generator, lost = folder / "last.ckpt", np.random.default_rng(0), 0
    for _ in range(times):
        with python(SAVING, path, stdout=subprocess.PIPE) as writer:
            for _ in range(3):
                writer.stdout.readline()
            time.sleep(float(generator.uniform(0, 0.05)))
            writer.kill()
            said = [3, *map(int, writer.stdout.read().split())]
        saved = read(path)
        lost += saved["step"] - said[-1] not in (0, 1) or bool(
            (saved["weights"] != saved["step"]).any()
        )
    return times, lost


def wrong_bits_in_a_checkpoint(folder):
    """Every bit of a small one. PyTorch alone reads most of these files, with a wrong weight."""
    path = folder / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"epoch": 3, "weights": torch.arange(5.0)}, path)
    whole, lost = path.read_bytes(), 0
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            read(path)
            lost += 1
        except TrainingError as error:
            lost += "last.ckpt: cannot be read" not in str(error)
    return 8 * len(whole), lost


# The cache

CACHING = """
import sys
import numpy as np
from matattn import cache
cache.WORTH_KEEPING = 0.0
for key in range(10**6 if "forever" in sys.argv else 3):
    assert cache.cached(str(key % 3), lambda: {"a": np.full(10**6, key % 3)})["a"][0] == key % 3
    if "forever" in sys.argv:
        for path in cache.folder().glob("*.npz"):
            path.unlink(missing_ok=True)
    if not key:
        print("begun", flush=True)
"""


@contextmanager
def cache_in(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATATTN_CACHE", str(folder))
        patch.setitem(ENVIRONMENT, "MATATTN_CACHE", str(folder))
        patch.setattr(cache, "WORTH_KEEPING", 0.0)
        yield


def cached(key):
    return cache.cached(str(key), lambda: {"a": np.full(10**6, key)})["a"]


def killed_while_one_of_two_builds(folder, times=20):
    """What stays is whole, and the other process goes on."""
    generator, lost = np.random.default_rng(0), 0
    with cache_in(folder), python(CACHING, "forever", stdout=subprocess.PIPE) as other:
        for _ in range(times):
            with python(CACHING, "forever", stdout=subprocess.PIPE) as victim:
                victim.stdout.readline()
                time.sleep(float(generator.uniform(0, 0.05)))
                victim.kill()
            lost += any((cached(key) != key).any() for key in range(3)) or other.poll() is not None
        other.kill()
    return times, lost


def wrong_bits_in_the_cache(folder):
    """Every bit of a small one."""
    content, built = {"a": np.arange(3.0), "b": np.frombuffer(b"xyz", np.uint8)}, []

    def build():
        built.append(None)
        return content

    with cache_in(folder):
        cache.cached("key", build)
        (path,) = folder.iterdir()
        whole, lost = path.read_bytes(), 0
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            found = cache.cached("key", build)
            lost += any(not np.array_equal(found[name], content[name]) for name in content)
        lost += 1 + 8 * len(whole) - len(built)
    return 8 * len(whole), lost


def full_disk_of_the_cache(folder):
    with cache_in(folder / "full"), disk(folder / "full", 9000):  # room for one of them
        lost = sum(int((cached(key) != key).any()) for key in range(3))
        kept = list((folder / "full").iterdir())
    return 3, lost + len(kept) - 1


def cache_that_cannot_be_written(folder):
    """On a disk that can only be read: costs time only."""
    with cache_in(folder / "disk"), disk(folder / "disk", 30_000):
        cached(0)
        remount(folder / "disk", "ro")
        return 3, sum(int((cached(key) != key).any()) for key in range(3))


# Downloads

CONTENT = np.random.default_rng(0).bytes(2**21)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FETCHING = "import sys; from matattn.download import fetch; fetch(*sys.argv[1:])"


class SlowFile(http.server.BaseHTTPRequestHandler):
    """Sends ``CONTENT``, or the rest of it, in half a second."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        begin = int(self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))
        self.server.begins.append(begin)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        try:
            for place in range(begin, len(CONTENT), 2**16):
                self.wfile.write(CONTENT[place : place + 2**16])
                time.sleep(0.5 / (len(CONTENT) / 2**16))
        except OSError:
            pass  # it was killed


@contextmanager
def slow_server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowFile) as server:
        server.begins = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server, f"http://127.0.0.1:{server.server_port}/file"
        server.shutdown()
        thread.join()


def killed_while_it_downloads(folder, times=20):
    """The next call goes on where the killed one was."""
    generator, killed, lost, path = np.random.default_rng(0), 0, 0, folder / "file"
    with slow_server() as (server, url):
        while killed < times:
            asked = len(server.begins)
            with python(FETCHING, url, path, SHA256) as process:
                while len(server.begins) == asked and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(float(generator.uniform(0, 0.5)))
                process.kill()
            killed += process.returncode == -signal.SIGKILL
            if path.exists():
                lost += path.read_bytes() != CONTENT
                shutil.rmtree(folder)
                folder.mkdir()
        download.fetch(url, path, SHA256)
        lost += path.read_bytes() != CONTENT
        assert any(server.begins), "none was resumed"
    return killed, lost


def full_disk_in_a_download(folder):
    with slow_server() as (server, url), disk(folder / "full", 1000):
        path, tried, lost = folder / "full" / "file", 0, 0
        for size in (1000, 1500, 2048):  # the last has no room for the checksum
            remount(folder / "full", f"size={size}k")
            process = python(FETCHING, url, path, SHA256, stderr=subprocess.PIPE)
            _, said = process.communicate(timeout=60)
            tried += 1
            lost += path.exists() or "No space left" not in said or str(path) not in said
        remount(folder / "full", "size=4000k")
        download.fetch(url, path, SHA256)
        return tried, lost + (path.read_bytes() != CONTENT) + (len(set(server.begins)) < 3)


# Models and predictions


def predict(model, *more, **options):
    process = python("from matattn.cli import main; main()", "predict", model, SALT, *more,
                     stderr=subprocess.PIPE, **options)  # fmt: skip
    out, said = process.communicate(timeout=60)
    return process.returncode, out, said


def wrong_bits_in_a_model(folder, times=20):
    """So many in each file: refused, naming the file, or harmless."""
    shutil.copytree(pretrained.find(MODEL), folder / "model")
    network = bundle.load(folder / "model")[0][0].state_dict()
    generator, tried, lost = np.random.default_rng(0), 0, 0
    for path in sorted((folder / "model").iterdir()):
        whole = path.read_bytes()
        for _ in range(times):
            path.write_bytes(damaged(whole, generator))
            tried += 1
            try:
                found = bundle.load(folder / "model")[0][0].state_dict()
                lost += any(not torch.equal(found[name], network[name]) for name in network)
                lost += path.name != "SHA256SUMS"
            except BundleError as error:
                lost += path.name not in str(error) and "SHA256SUMS" not in str(error)
            path.write_bytes(whole)
    return tried, lost


def full_disk_of_a_table(folder):
    """One line, no half file, and the rows go to the terminal."""
    tried = lost = 0
    with disk(folder / "full", 4):
        (folder / "full" / "old.csv").write_bytes(b"x" * 4096)
        for suffix in ("csv", "json", "jsonl"):
            target = folder / "full" / f"old.{suffix}"
            status, out, said = predict(MODEL, "-o", target, stdout=subprocess.PIPE)
            tried += 1
            lost += status != 2 or out.count("NaCl") < 1 or f"error: {target}: {FULL}" not in said
            lost += "Traceback" in said
        lost += [entry.name for entry in (folder / "full").iterdir()] != ["old.csv"]
        lost += (folder / "full" / "old.csv").read_bytes() != b"x" * 4096
    return tried, lost


def full_disk_behind_the_output(folder):
    with open("/dev/full", "w") as output:
        status, _, said = predict(MODEL, stdout=output)
    return 1, int(status != 2 or f"standard output: {FULL}" not in said or "Traceback" in said)


def killed(settings, epochs, times=10):
    settings = *settings, f"trainer.max_epochs={epochs}"
    return partial(killed_training, settings=settings, times=times if THOROUGH else 2)


SLOW, ROOT_ONLY, SCRIPT_ONLY = 1, 2, 4
FAULTS = {
    "kill -9 during a training of crystalformer": (killed(CRYSTALS, epochs=60), SLOW),
    "kill -9 during a training of flare": (killed(MESHES, epochs=60), SCRIPT_ONLY),
    "kill -9 during a training of wavefunction": (killed(SPINS, epochs=60, times=5), SLOW),
    "kill -9 during a training of text_encoder": (killed(TEXT, epochs=10), SCRIPT_ONLY),
    "kill -9 before each file of a run gets its name": (killed_before_each_file, SLOW),
    "kill -9 while a checkpoint is saved": (killed_while_it_saves, SLOW),
    "kill -9 of one of two processes that build a cache": (killed_while_one_of_two_builds, SLOW),
    "kill -9 during a download": (killed_while_it_downloads, SLOW),
    "full disk during a training": (full_disk_in_training, SLOW | ROOT_ONLY),
    "full disk during a download": (full_disk_in_a_download, SLOW | ROOT_ONLY),
    "full disk below the cache": (full_disk_of_the_cache, SLOW | ROOT_ONLY),
    "full disk below matattn predict -o": (full_disk_of_a_table, SLOW | ROOT_ONLY),
    "full disk behind the standard output": (full_disk_behind_the_output, 0),
    "cache on a disk that can only be read": (cache_that_cannot_be_written, SLOW | ROOT_ONLY),
    "one wrong bit in a cache": (wrong_bits_in_the_cache, SLOW),
    "one wrong bit in a checkpoint": (wrong_bits_in_a_checkpoint, 0),
    "one wrong bit in a model": (wrong_bits_in_a_model, 0),
}


def cases():
    root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounts disks: needs root")
    for name, (function, needs) in FAULTS.items():
        if needs & SCRIPT_ONLY:
            continue
        marks = [pytest.mark.slow] if needs & SLOW else []
        marks += [root_only] if needs & ROOT_ONLY else []
        yield pytest.param(function, marks=marks, id=name)


@pytest.mark.share(3)
@pytest.mark.parametrize("fault", [*cases()])
def test_nothing_is_lost(tmp_path, fault):
    tried, lost = fault(tmp_path)
    assert tried > 0 and lost == 0


def main():
    print("| fault | times tried | lost |\n|---|---|---|")
    for name, (function, _) in FAULTS.items():
        if not sys.argv[1:] or sys.argv[1] in name:
            with tempfile.TemporaryDirectory() as place:
                tried, lost = function(Path(place))
            print(f"| {name} | {tried:,} | {lost} |", flush=True)


if __name__ == "__main__":
    main()
