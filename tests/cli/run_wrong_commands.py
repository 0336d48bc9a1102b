"""Run every line of a file as arguments of train.py; print a JSON line for each.

Each runs in a process of its own, forked after the slow imports. Prints command, exit status and
standard error. Another checkout: ``PYTHONPATH=CHECKOUT python run_wrong_commands.py FILE``.
"""

import importlib
import json
import os
import shlex
import sys
import traceback
from pathlib import Path

import lightning  # noqa: F401
import pymatgen.core  # noqa: F401
import torch_geometric  # noqa: F401

from matattn.cli.train import main

# All but JAX, whose threads do not survive a fork.
for family in ("structures.train", "potentials.train", "meshes.train", "text.tokenization"):
    importlib.import_module(f"matattn.workflows.{family}")


def run(command: str) -> tuple[int, str]:
    """Return exit status and standard error of one training; 99: it ended with a traceback."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["train.py", *shlex.split(command)]
        status = 0
        try:
            main()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 99
        sys.stderr.flush()
        os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


if __name__ == "__main__":
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        code, message = run(line)
        print(json.dumps({"command": line, "status": code, "stderr": message}), flush=True)
