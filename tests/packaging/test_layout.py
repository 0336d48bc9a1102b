"""The source tree: links, namespaces, light imports."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "jax", "lightning", "numpy", "scipy", "pymatgen", "torch_geometric"}


def python(code: str, cwd, **env: str) -> str:
    """What ``code`` prints in a fresh interpreter that starts in ``cwd``."""
    environment = {**os.environ, **env}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_linked_folders_have_no_init(root, folders):
    """One in models/ would shadow other packages of that name when train.py runs beside it."""
    assert [f for f in folders if (root / f / "__init__.py").exists()] == ["conf"]


def test_links_are_relative(root, folders):
    for folder in folders:
        link = root / "matattn" / folder
        if not link.is_symlink():
            pytest.skip("this checkout has no symlinks")
        assert os.readlink(link) == f"../{folder}"


def test_links_are_committed(root, folders):
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-s", "--", *(f"matattn/{f}" for f in folders)]
    listed = subprocess.check_output(command, cwd=root, text=True)
    modes = {line.split("\t")[1]: line.split()[0] for line in listed.splitlines()}
    assert modes == {f"matattn/{f}": "120000" for f in folders}


def test_checkout_without_links_imports(sources, folders):
    """Git writes each link as a small text file where the file system has none."""
    for folder in folders:
        link = sources / "matattn" / folder
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)
    code = (
        "import matattn.conf; print(matattn.conf.__file__)\n"
        "from importlib.util import find_spec\n"
        f"for folder in {folders}:\n"
        "    print(*find_spec('matattn.' + folder).submodule_search_locations)\n"
    )
    found = python(code, sources.parent, PYTHONPATH=str(sources)).splitlines()
    assert found == [str(sources / "conf/__init__.py"), *(str(sources / f) for f in folders)]


@pytest.mark.parametrize("arguments", [None, ["--help"], ["--version"]])
def test_start_is_light(arguments, tmp_path):
    """Neither the import nor the command's help waits for an array library."""
    code = "import json, sys, matattn\n"
    if arguments is not None:
        code += (
            f"sys.argv[1:] = {arguments}\n"
            "import contextlib, io\n"
            "from matattn.cli import main\n"
            "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
            "    main()\n"
        )
    code += "print(json.dumps([name for name in sys.modules if '.' not in name]))"
    loaded = set(json.loads(python(code, tmp_path)))
    assert "matattn" in loaded
    assert not loaded & HEAVY


def test_console_script_is_declared():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="matattn")
    assert [script.value for script in scripts] == ["matattn.cli:main"]
