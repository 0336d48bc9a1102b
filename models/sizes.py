"""Checks of the sizes of networks."""

from __future__ import annotations


def check_sizes(dim: int, num_heads: int, **others: int | float) -> None:
    """Raise ValueError for a size below 1, or if the heads do not divide ``dim``."""
    for name, size in {"dim": dim, "num_heads": num_heads, **others}.items():
        if not size >= 1:
            raise ValueError(f"{name}={size}: expected at least 1")
    if dim % num_heads:
        raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
