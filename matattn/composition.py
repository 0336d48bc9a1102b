"""Hydra, as matattn uses it: composing a configuration, and saying what is wrong with one."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matattn import plugins
from matattn.errors import ConfigError, MatattnError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def register() -> None:
    """Make Hydra know matattn's schema and resolvers, and the configuration files of packages."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    from matattn.conf import schema

    class PackageFolders(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in plugins.folders():
                search_path.append(folder.package, f"file://{folder.path}")

    schema.register()
    Plugins.instance().register(PackageFolders)


@contextmanager
def composed(name: str, overrides: Sequence[str]) -> Iterator[DictConfig]:
    """Compose ``conf/<name>.yaml`` with ``overrides`` as the command line does, for a block.

    In the block, Hydra is as a command has it; behind it, as it was before, whoever had initialised
    it (a notebook, the user's own application). Raises ConfigError for a mistake.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.basecontainer import BaseContainer
    from omegaconf.errors import OmegaConfBaseException

    before = Singleton._instances, BaseContainer._resolvers
    Singleton.set_state(Singleton.get_state())  # copies: the originals stay as they are
    try:
        GlobalHydra.instance().clear()
        register()
        with hydra.initialize_config_module("matattn.conf", version_base="1.3"):
            config = hydra.compose(name, [*map(at_home, overrides)], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        plugins.check_choices(HydraConfig.get().runtime.choices)
        with open_dict(config):
            del config["hydra"]
        yield config
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # Hydra's, of data=3
            raise
        raise ConfigError(one_line(error)) from error
    finally:
        Singleton._instances, BaseContainer._resolvers = before


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Return keys and values as overrides: {"trainer.max_epochs": 2} becomes trainer.max_epochs=2.

    Texts are quoted, so that they may hold any character.
    """
    return [f"{key}={_written(value)}" for key, value in values.items()]


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str | os.PathLike):
        return f'"{escaped(os.path.expanduser(os.fspath(value)))}"'
    return repr(value)


def at_home(argument: str) -> str:
    """Return an override whose path begins with ~/ as one with the whole path: Hydra knows no ~."""
    key, sign, value = argument.partition("=")
    return key + sign + (os.path.expanduser(value) if value.startswith("~/") else value)


def escaped(text: str) -> str:
    """Return a text as it stands between double quotes of Hydra."""
    return re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and "\\" + m[2]), text)


def _unreadable(override: str) -> str:
    """Return what to do about an override that Hydra cannot read."""
    key, sign, value = override.partition("=")
    if not sign:
        return f"{override}: expected key=value"
    quoted = shlex.quote(f'{key}="{escaped(value)}"')
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
        quoted = shlex.quote(f'{key}="{escaped(value)}"')
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
    """Return every key of every YAML file of the configuration, and of those of packages."""
    places = [Path(str(files("matattn.conf"))), *(folder.path for folder in plugins.folders())]
    text = "\n".join(path.read_text("utf-8") for one in places for path in one.rglob("*.yaml"))
    return sorted({*re.findall(r"^\s*(\w+):", text, flags=re.MULTILINE), "seed", "overwrite"})
