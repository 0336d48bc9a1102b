"""Choice of a kernel backend.

Every operator has a table of backends, best first. ``choose`` returns the first one that takes the
call, or the one that the caller (argument ``backend``) or the user (environment variable
``MATATTN_BACKEND``) asked for, or raises with the reason why that one cannot take it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch

logger = logging.getLogger("matattn")
_announced: set[tuple[str, str, str]] = set()


class BackendError(RuntimeError):
    """The requested kernel backend does not exist or cannot take this call."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator: a module with ``forward`` and ``backward``.

    ``refuses(device, dtype)`` returns the reason why it cannot take a call, or None. ``automatic``
    says whether ``backend="auto"`` may pick it.
    """

    module: ModuleType
    refuses: Callable[[torch.device, torch.dtype], str | None] = lambda device, dtype: None
    automatic: bool = True


def choose(
    operator: str,
    table: Mapping[str, Backend],
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """Name of the backend in ``table`` (best first) that takes this call.

    Raises BackendError when the requested one is unknown or refuses.
    """
    if requested == "auto":
        requested = os.environ.get("MATATTN_BACKEND", "auto")
    if requested != "auto":
        if requested not in table:
            known = ", ".join(["auto", *table])
            raise BackendError(f"{operator}: no backend named {requested!r}; choose one of {known}")
        if reason := table[requested].refuses(device, dtype):
            raise BackendError(f"{operator}: backend {requested!r} cannot take this call: {reason}")
        return requested
    refusals = []
    for name, backend in table.items():
        if not backend.automatic:
            continue
        if reason := backend.refuses(device, dtype):
            refusals.append(f"; not {name!r}: {reason}")
            continue
        if (operator, name, device.type) not in _announced:
            _announced.add((operator, name, device.type))
            logger.info(
                "%s runs on backend %r (%s)%s", operator, name, device.type, "".join(refusals)
            )
        return name
    raise BackendError(f"{operator}: no backend takes {dtype} on {device}{''.join(refusals)}")
