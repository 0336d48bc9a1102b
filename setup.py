"""Builds the compiled kernel backend; everything else is in pyproject.toml.

The extension is optional: without a C compiler matattn installs all the same, and the ``torch``
backend serves. It is a plain shared library that ``kernels/periodic_attention/cpu.py`` loads.
"""

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi"]


class BuildKernel(build_ext):
    """With OpenMP where the compiler has it, else for one thread."""

    def build_extension(self, ext: Extension) -> None:
        try:
            ext.extra_compile_args, ext.extra_link_args = [*FLAGS, "-fopenmp"], ["-fopenmp"]
            super().build_extension(ext)
        except (CompileError, LinkError):
            ext.extra_compile_args, ext.extra_link_args = FLAGS, []
            super().build_extension(ext)


folder = "matattn/kernels/periodic_attention"
setup(
    cmdclass={"build_ext": BuildKernel},
    ext_modules=[
        Extension(
            "matattn.kernels.periodic_attention._cpu",
            sources=[f"{folder}/cpu.c"],
            depends=[f"{folder}/cpu_kernel.h", f"{folder}/cpu_variant.h"],
            libraries=["m"],
            optional=True,
        )
    ],
)
