"""What to cite: matattn, its networks, and the data behind a model.

The class attribute ``citations`` of a network and ``citations:`` in ``conf/data`` list keys of
``references.bib``. A whole BibTeX entry may stand in place of a key, so a new network or data set
with a paper of its own needs no further file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import matattn
from matattn import networks, plugins
from matattn.errors import DataError

_ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)


def entries(keys: Sequence[str]) -> list[str]:
    """Return the BibTeX entries of keys of ``references.bib``; an entry stands for itself.

    Raises DataError naming a key that the file does not have.
    """
    text = (files("matattn") / "references.bib").read_text("utf-8")
    references = {match[1]: match[0] for match in _ENTRY.finditer(text)}
    if unknown := [key for key in keys if not key.startswith("@") and key not in references]:
        raise DataError(
            f"references.bib: no entry {unknown[0]!r}; cite one of its keys, or write the whole "
            "BibTeX entry, which begins with @"
        )
    return [references.get(key, key) for key in keys]


def bibtex(config: Mapping[str, Any] | None = None) -> str:
    """Return BibTeX of matattn and all networks, or of the network and data of a bundle's config.

    New bundles record what to cite for their data. For older ones, the name of the data decides.
    Data without a citation are named in a comment. Raises BundleError for an unknown network, and
    DataError for an unknown key.
    """
    software = (
        "@software{matattn,\n  title = {matattn},\n  author = {{The matattn developers}},\n"
        f"  version = {{{matattn.__version__}}},\n}}"
    )
    if config is None:
        cited = entries([key for name in plugins.own_networks() for key in _of_network(name)])
    else:
        networks.check(str(config["network"]), config.get("package"))
        data = {"name": "unknown data", **config.get("data", {})}
        of_data = entries(data["citations"] if "citations" in data else _of_data(data["name"]))
        comment = f"% trained on {data['name']}: cite where these data come from"
        cited = [*entries(_of_network(config["network"])), *(of_data or [comment])]
    return "\n\n".join(dict.fromkeys([software, *cited]))


def _of_network(name: str) -> list[str]:
    """Return ``citations`` of a network from its source, without an import of PyTorch or JAX."""
    if networks.package(name) is not None:  # of another package: read as it is imported
        return list(networks.find(name).citations)  # type: ignore[attr-defined]
    package, _, module = plugins.own_networks()[name].rpartition(".")
    tree = ast.parse((files(package) / f"{module}.py").read_text("utf-8"))
    (body,) = (c.body for c in tree.body if isinstance(c, ast.ClassDef) and c.name == name)
    for statement in body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name("citations")], value=ast.expr() as value)
                | ast.AnnAssign(target=ast.Name("citations"), value=ast.expr() as value)
            ):
                try:
                    return list(ast.literal_eval(value))
                except ValueError:
                    raise DataError(
                        f"{module}.py: citations of {name} must be written out in its class body"
                    ) from None
    return []


def _of_data(name: str) -> list[str]:
    """Return ``citations`` of the file in ``conf/data`` whose ``name`` is exactly this one."""
    import yaml

    for path in (files("matattn.conf") / "data").iterdir():
        section = yaml.safe_load(path.read_text("utf-8")) if path.name.endswith(".yaml") else {}
        if section.get("name") == name:
            return section.get("citations", [])
    return []
