"""CITATION.cff holds what its schema demands, and this version."""

import yaml

import matattn


def test_citation(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["title"] == "matattn" and citation["message"]
    assert citation["version"] == matattn.__version__
    for author in [
        *citation["authors"],
        *(a for r in citation["references"] for a in r["authors"]),
    ]:
        assert set(author) <= {"name", "family-names", "given-names"} and author


def test_papers_of_the_networks_are_references(root):
    """As ``matattn cite`` prints them."""
    text = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert all(number in text for number in ("2403.11686", "2508.12594", "2506.11115", "ada1a0"))
