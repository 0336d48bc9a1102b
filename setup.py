"""Builds the compiled kernel backends; everything else is in pyproject.toml.

The extensions are optional: without a C compiler matattn installs all the same, and the ``torch``
backends serve. Each is a plain shared library that ``cpu.py`` of its operator loads by ctypes. It
knows nothing of Python, so one wheel serves every version of it.
"""

from importlib.machinery import EXTENSION_SUFFIXES

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi"]


class BuildKernel(build_ext):
    """With OpenMP where the compiler has it, else for one thread."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one extension; setuptools leaves it out when this fails."""
        try:
            ext.extra_compile_args, ext.extra_link_args = [*FLAGS, "-fopenmp"], ["-fopenmp"]
            super().build_extension(ext)
        except (CompileError, LinkError):
            ext.extra_compile_args, ext.extra_link_args = FLAGS, []
            super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        """Return the file's name, in which no version of Python stands."""
        return fullname.replace(".", "/") + EXTENSION_SUFFIXES[-1]


class Wheel(bdist_wheel):
    """A wheel for one kind of machine and any version of Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, of its binary interface and of the machine."""
        return "py3", "none", super().get_tag()[2]


COMMON = [f"matattn/kernels/cpu_common/{name}.h" for name in ("variants", "variant")]


def kernel(operator: str, *headers: str) -> Extension:
    """Return the extension of an operator in kernels/."""
    folder = f"matattn/kernels/{operator}"
    return Extension(
        f"matattn.kernels.{operator}._cpu",
        sources=[f"{folder}/cpu.c"],
        depends=[*(f"{folder}/{name}.h" for name in headers), *COMMON],
        libraries=["m"],
        optional=True,
    )


setup(
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": Wheel},
    ext_modules=[
        kernel("directional_sums", "cpu_kernel"),
        kernel("periodic_attention", "cpu_kernel"),
        kernel("low_rank_routing", "cpu_kernel", "cpu_tile"),
    ],
)
