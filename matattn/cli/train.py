"""``matattn train`` and ``train.py``: Hydra's command line, with errors in one line."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from matattn.cli.terminal import terminal
from matattn.errors import MatattnError, TrainingError

if TYPE_CHECKING:
    from omegaconf import DictConfig


# Errors of submitit and joblib when one of their processes is gone.
KILLED = ("UncompletedJobError", "TerminatedWorkerError", "BrokenProcessPool")
SOME_KILLED = (
    "a run of the sweep was killed, often for its memory; others may still run: matattn sweep "
    "report tells, and the same command does what is not done"
)


def train(context: typer.Context) -> None:
    """Train a model: matattn train model=crystalformer (matattn train --help lists all choices)."""
    sys.argv = [sys.argv[0], *context.args]
    main()


@terminal()
def main() -> None:
    """Train as the command line says; a user's mistake ends with one line and exit status 2."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from matattn.conf.schema import register

    sys.argv[1:] = map(_at_home, sys.argv[1:])
    full_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach the lines below instead of Hydra's printer
    register()

    def stop(error: Exception) -> NoReturn:
        if full_traceback:
            raise error
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)

    @hydra.main(version_base="1.3", config_path="pkg://matattn.conf", config_name="train")
    def job(cfg: DictConfig) -> float:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from matattn.kernels.dispatch import BackendError
        from matattn.workflows.run import run
        from matattn.workflows.task import TASKS

        try:
            metrics = run(cfg)
            return TASKS[cfg.task.workflow].objective(metrics)[1]
        except (MatattnError, BackendError, OmegaConfBaseException, OSError) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                print(f"error: {one_line(error)}", file=sys.stderr)
                raise  # the sweep goes on with its other runs, and then ends with this error
            stop(error)
        except KeyboardInterrupt:
            print("interrupted; the same command resumes from the last epoch", file=sys.stderr)
            sys.exit(130)

    try:
        job()
    except BrokenPipeError:  # who reads the help has seen enough
        raise
    except (MatattnError, HydraException, OmegaConfBaseException, OSError) as error:
        stop(error)
    except (RuntimeError, ValueError) as error:
        name = type(error).__name__
        if name in KILLED:
            stop(TrainingError(SOME_KILLED))
        # The kernels' BackendError and Hydra's of data=3 are a user's mistakes; else a defect.
        if name != "BackendError" and not str(error).startswith("Config group override"):
            raise
        stop(error)


def _at_home(argument: str) -> str:
    """Return an override whose path begins with ~/ as one with the whole path: Hydra knows no ~."""
    key, sign, value = argument.partition("=")
    return key + sign + (os.path.expanduser(value) if value.startswith("~/") else value)


def _escaped(text: str) -> str:
    """Return a text as it stands between double quotes of Hydra."""
    return re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and "\\" + m[2]), text)


def _unreadable(override: str) -> str:
    """Return what to do about an override that Hydra cannot read."""
    key, sign, value = override.partition("=")
    if not sign:
        return f"{override}: expected key=value"
    quoted = shlex.quote(f'{key}="{_escaped(value)}"')
    if value[:1] in ("[", "{") and value[-1:] in ("]", "}"):
        return f"{override}: is no list that can be read; quote the texts in it: '{key}=[\"a=b\"]'"
    return f"{override}: has characters with a meaning of their own; quote the value: {quoted}"


def one_line(error: Exception) -> str:
    """Return what is wrong with a configuration, with the nearest key to a misspelt one."""
    from hydra.errors import OverrideParseException

    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    cause = "" if isinstance(error, MatattnError) else error.__cause__ or ""
    text = " ".join(f"{error} {cause}".split())
    misspelt = re.search(r"Key '(\w+)' is not in struct full_key: (\S+)", text) or re.search(
        r"Key '(\w+)' not in 'TrainConfig' full_key: (\S+)", text
    )
    if several := re.search(r"Ambiguous value for argument '(.*?)' 1\. To use", text):
        key, _, value = several.group(1).partition("=")
        quoted = shlex.quote(f'{key}="{_escaped(value)}"')
        return (
            f"{key}={value}: several values need -m for a sweep, or brackets for a list: "
            f"'{key}=[{value}]'; if it is one text, quote it: {quoted}"
        )
    if absent := re.search(r"Could not delete from config\. '(\S+)' does not exist", text):
        return f"{absent.group(1)}: there is no such key (python train.py --help lists all)"
    if missing := re.search(r"Missing mandatory value: \w+ full_key: (\S+)", text):
        return f"{missing.group(1)}: has no value; give {missing.group(1)}=..."
    plugin = re.search(r"find 'hydra/(launcher|sweeper)/(\w+)' (.*) Config search path", text)
    if plugin:
        kind, name, known = plugin.groups()
        extra = "cluster" if kind == "launcher" else "optuna"
        install = f"not installed (pip install 'matattn[{extra}]'), or misspelt"
        return f"hydra/{kind}={name}: {install}. {known}"
    if misspelt is None:
        return text
    key, place = misspelt.groups()
    known = _known_keys()
    near = [] if key in known else difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{place}: there is no such key{hint} (python train.py --help lists all)"


def _known_keys() -> list[str]:
    """Return every key of every YAML file of the configuration."""
    from importlib.resources import files
    from pathlib import Path

    folder = Path(str(files("matattn.conf")))
    text = "\n".join(path.read_text() for path in folder.rglob("*.yaml"))
    return sorted({*re.findall(r"^\s*(\w+):", text, flags=re.MULTILINE), "seed", "overwrite"})
