"""Commands and programs of the documentation, and those that the tests cannot run, with reasons."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"))
)
SHELL, PROGRAM = "bash", "python"
# Outputs, rows of data, what Sphinx reads, files of a package.
OTHER = {"", "json", "text", "{include}", "{toctree}", "toml", "yaml"}
FENCE = re.compile(r"^```(\{?\w*\}?)[^\n]*\n(.*?)^```", re.M | re.S)

_INSTALLS = "it makes an environment, as .ci/run does with the README's command"
_CHECKS = "it is a step of .ci/run"
_DATA = "it needs files of MATATTN_DATA, or your own"
_NETWORK = "it downloads"
_HOURS = "it takes too long: the page says how long"
_CLUSTER = "it needs Slurm (tests/workflows/test_slurm.py) or is one run of many"
_NODES = "it needs two nodes (tests/workflows/test_several_processes.py starts them on one)"
PACKAGE = "it needs the package of its page (tests/packaging/test_outside_package.py)"
_PART = "it is a part of that package, which the same test uses"
_WHEEL = "tests/packaging/test_distribution.py executes it"
_OPTUNA = "it needs the extra optuna, which is not part of all (tests/workflows/test_launchers.py)"

NOT_EXECUTED = {
    _INSTALLS: [
        "python3 -m venv .venv && .venv/bin/pip install *",
        ".venv/bin/pip install pre-commit *",
        "pip install -c constraints.txt -e *",
        "pip install -e '.[[]build-data]'",
        "pip install *.whl",
    ],
    _CHECKS: ["*.venv/bin/python -m pytest *", "*python -m sphinx *"],
    _DATA: [
        "export MATATTN_DATA=*",
        "*data=qm7*",
        "*data=mlearn*",
        "*data=acac*",
        "*data=potential_files*",
        "*--data qm7*",
        "*data=qm9nmr*",
        "*mp2018_subset*",
        "*benchmark=matbench*",
        "matattn leaderboard *",
        "*experiment=crystalformer_mp_*",
        "*experiment=mlearn_*",
        "*experiment=pretrain_mp*",
        "cp -r outputs/pretrain_mp_formation_energy/model *",
        "*experiment=matter_materials_text*",
        "*experiment=text_encoder_mulms*",
        "python train.py -m init_from=mp-formation-energy data=table ... *",
    ],
    _NETWORK: ["*download*"],
    _HOURS: [
        "*python benchmarks/*",
        "python tools/prototypes/build.py *",
        "*python tools/calibrate_kinds.py*",
        "python train.py experiment=wavefunction_6x6_hour",
        "python train.py model=flare_published *",
        "*hydra/launcher=local_cluster*",
    ],
    _CLUSTER: [
        "matattn screen mp-band-gap pool.jsonl *",
        "*hydra/launcher=slurm*",
        "#SBATCH *",
        "*SLURM_CPUS_PER_TASK",
        "exec python *",
    ],
    _NODES: ["torchrun *", "srun *"],
    PACKAGE: ["pip install ./matattn-schnet", "*schnet*", "*data=pair_potential*"],
    _WHEEL: ["python -m pip wheel *", "python -m auditwheel *"],
    _OPTUNA: ["*sweep=optuna*"],
}

PARTS = {_PART: ["class SchNet(*", "from matattn.testing import CrystalContract*", "def load(*"]}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Its page and line."""
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of a shell block, without comments and with joined lines."""
        lines = self.text.replace("\\\n", " ").splitlines()
        stripped = (re.sub(r"(^|\s)#(?!SBATCH|!).*", "", line).strip() for line in lines)
        return [line for line in stripped if line and not line.startswith("#!")]


def blocks() -> list[Block]:
    """Return all fenced blocks of all pages."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page, line, match[1], match[2]))
    return found


def reason(text: str, listed: dict[str, list[str]] = NOT_EXECUTED) -> str | None:
    """Return why a command, or a program of ``PARTS``, is not executed, or None."""
    for why, patterns in listed.items():
        if any(fnmatchcase(text, pattern) for pattern in patterns):
            return why
    return None


def training(command: str) -> list[str] | None:
    """Return the arguments of a training, or None where the command is something else."""
    found = re.search(r"(?:python train\.py|matattn train) (.*)", command)
    return shlex.split(found[1]) if found else None
