"""docs/errors.md lists every class of errors, and messages that the code has."""

from __future__ import annotations

import ast
import errno
import inspect
import itertools
import os
import re

import pytest

from matattn import errors
from matattn.kernels.dispatch import BackendError

from .commands import ROOT

ROWS = re.findall(
    r"^\|(.*?)\| `(.*)` \| .+ \|$", (ROOT / "docs/errors.md").read_text("utf-8"), re.M
)
CLASSES = {name.strip(" `") for name, _ in ROWS if "`" in name}
MESSAGES = [message for _, messages in ROWS for message in messages.split("`, `")]
FOLDERS = ("matattn", "kernels", "models", "datasets", "workflows")


@pytest.fixture(scope="module")
def texts() -> str:
    """All texts in the code, with a space where a value stands in an f-string."""
    found = [os.strerror(errno.ENOSPC)]
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [getattr(part, "value", " ") for part in node.values]
                    found.append("".join(p if isinstance(p, str) else " \0 " for p in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_every_class_is_listed():
    classes = {
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.MatattnError) and kind is not errors.MatattnError
    }
    assert CLASSES == classes | {BackendError.__name__}


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_one_of_the_code(message, texts):
    """Two words in a row are, beside the values of the example; or a long one, where none are."""
    runs = re.split(r"\.\.\.|['\"`][^'\"`]*['\"`]|\S*[\d=_/]\S*|\b\w+\.\w+\S*|[:;,?()]", message)
    pairs = [" ".join(pair) for run in runs for pair in itertools.pairwise(run.split())]
    words = re.findall(r"[a-z]{5,}", " ".join(runs))
    assert any(pair in texts for pair in pairs) or any(word in texts for word in words), message
