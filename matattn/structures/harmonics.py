"""Real spherical harmonics of directions, in numpy and in PyTorch."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

MOST = 3  # the largest degree
Array = TypeVar("Array", np.ndarray, Tensor)


def count(degree: int) -> int:
    """Return how many functions of degrees 1 to ``degree`` there are."""
    return (degree + 1) ** 2 - 1


def columns(x: Array, y: Array, z: Array, degree: int) -> list[Array]:
    r"""Return :math:`C_{lm}`, l = 1..``degree`` (at most 3), m = -l..l, of unit vectors.

    They are in Racah's normalisation, so that :math:`\sum_m C_{lm}(r) C_{lm}(r')` is the Legendre
    polynomial of the angle between r and r', and homogeneous polynomials: those of the zero vector
    are 0.
    """
    made = [y, z, x]
    if degree > 1:
        root = math.sqrt(3)
        made += [root * x * y, root * y * z, z * z - 0.5 * (x * x + y * y), root * x * z,
                 root / 2 * (x * x - y * y)]  # fmt: skip
    if degree > 2:
        outer, inner, root = math.sqrt(5 / 8), math.sqrt(3 / 8), math.sqrt(15)
        along = 4 * z * z - x * x - y * y
        made += [
            outer * y * (3 * x * x - y * y), root * x * y * z, inner * y * along,
            z * (z * z - 1.5 * (x * x + y * y)), inner * x * along,
            root / 2 * z * (x * x - y * y), outer * x * (x * x - 3 * y * y),
        ]  # fmt: skip
    return made


def of_vectors(vectors: np.ndarray, degree: int) -> np.ndarray:
    """Return the harmonics [E, ``count(degree)``] of the directions of vectors [E, 3]."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    x, y, z = (vectors / np.where(length > 0, length, 1)).T
    return np.stack(columns(x, y, z, degree), axis=1)


def of_edges(vectors: Tensor, length: Tensor, degree: int) -> Tensor:
    """Return the harmonics [E, ``count(degree)``] of vectors [E, 3] of lengths [E].

    They are differentiable; the atom itself, of length 0, has none and no derivative.
    """
    x, y, z = (vectors / torch.where(length > 0, length, 1.0)[:, None]).unbind(1)
    return torch.stack(columns(x, y, z, degree), dim=1)
