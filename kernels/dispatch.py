"""Choice of a kernel backend.

Every operator has a table of backends, best first. ``choose`` returns the first one that takes the
call. The caller (argument ``backend``) or the user (environment variable ``MATATTN_BACKEND``) can
name another one; if that cannot take the call, ``choose`` raises with the reason.
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
    """One implementation of an operator, a module with its functions.

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
    """Return the name of the backend in ``table`` (best first) that takes this call.

    Raises:
        BackendError: the requested backend is unknown or refuses the call, or all of them refuse.
    """
    if requested == "auto":
        requested = os.environ.get("MATATTN_BACKEND", "auto")
    if requested != "auto":
        if requested not in table:
            names = ", ".join(["auto", *table])
            raise BackendError(f"{operator}: no backend named {requested!r}; choose one of {names}")
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
