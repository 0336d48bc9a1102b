"""BibTeX of matattn, its networks and data."""

import re
import subprocess
import sys
from importlib.resources import files

import pytest

from matattn.citations import bibtex, entries
from matattn.errors import BundleError, DataError

TEXT = (files("matattn") / "references.bib").read_text(encoding="utf-8")
KEYS = re.findall(r"^@\w+\{(\w+),$", TEXT, re.MULTILINE)


def keys(text):
    return re.findall(r"@\w+\{(\w+),", text)


def field(entry, name):
    match = re.search(rf"^  {name} = \{{(.*?)\}},$", entry, re.MULTILINE | re.DOTALL)
    return " ".join(match[1].split()) if match else ""


def test_keys_are_unique():
    assert len(KEYS) == TEXT.count("\n@") + 1 == len(set(KEYS))


@pytest.mark.parametrize("key", KEYS)
def test_entries_are_whole(key):
    (entry,) = entries([key])
    assert entry.startswith("@") and entry.endswith("\n}") and keys(entry) == [key]
    assert entry.count("{") == entry.count("}")
    assert '{"' not in entry, "an accent has lost its backslash"
    assert "&" not in entry.replace("\\&", ""), "LaTeX would take it for the end of a column"
    assert field(entry, "title")
    assert field(entry, "author") or "author" in field(entry, "note")
    assert re.fullmatch("(19|20)[0-9]{2}", field(entry, "year"))


def test_networks_have_authors_and_title():
    """Two were cited under a name of our own, one of them without its year."""
    matter, flare_plus_plus = entries(["matter", "flare_plus_plus"])
    assert field(matter, "title") == "Incorporating Domain Knowledge into Materials Tokenization"
    authors = "Oh, Yerim and Park, Jun-Hyung and Kim, Junho and Kim, SungHo and Lee, SangKeun"
    assert field(matter, "author") == authors and field(matter, "eprint") == "2506.11115"
    assert field(flare_plus_plus, "author").startswith("Puri, Vedant and ")
    assert field(flare_plus_plus, "year") == "2026"


def test_unknown_keys_are_refused():
    with pytest.raises(DataError, match="references.bib: no entry 'qm10'; "):
        entries(["qm9", "qm10"])


def test_a_whole_entry_stands_for_itself():
    entry = "@misc{mine,\n  title = {A {B} C},\n}"
    assert entries([entry]) == [entry]
    config = {"network": "CoulGAT", "data": {"name": "mine", "citations": [entry]}}
    assert keys(bibtex(config)) == ["matattn", "coulgat", "mine"]


def test_recorded_citations_of_data_count():
    config = {"network": "FLARE", "data": {"name": "lpbf_of_my_own", "citations": ["lpbf"]}}
    with pytest.raises(DataError, match="'lpbf'"):
        bibtex(config)
    config["data"]["citations"] = ["flare", "fno"]
    assert keys(bibtex(config)) == ["matattn", "flare", "flare_plus_plus", "fno"]  # flare once


@pytest.mark.parametrize(
    "name, cited",
    [
        ("qm9", ["qm9"]),
        ("qm9nmr", ["qm9nmr", "qm9"]),
        ("matbench_phonons", ["matbench", "phonons"]),
        ("prototypes", ["chgnet", "materials_project"]),
    ],
)
def test_older_bundles_are_cited_by_the_exact_name_of_their_data(name, cited):
    assert keys(bibtex({"network": "CoulGAT", "data": {"name": name}}))[2:] == cited


@pytest.mark.parametrize(
    "data", [{"name": "qm9_mine"}, {"name": "qm9_mine", "citations": []}, {"name": "table"}]
)
def test_data_of_a_user_are_a_comment(data):
    *cited, comment = bibtex({"network": "CoulGAT", "data": data}).split("\n\n")
    assert [key for entry in cited for key in keys(entry)] == ["matattn", "coulgat"]
    assert comment == f"% trained on {data['name']}: cite where these data come from"


def test_unknown_networks_are_refused():
    with pytest.raises(BundleError, match="unknown network 'Mine'; known: CoulGAT"):
        bibtex({"network": "Mine"})


def test_citing_loads_no_array_library():
    code = (
        "import sys\n"
        "for name in ('torch', 'jax', 'flax', 'netket', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "from matattn.cli import app\n"
        "app(['cite'], standalone_mode=False)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {"crystalformer", "matter", "netket"} < set(keys(run.stdout))
