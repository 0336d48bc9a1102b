"""Live databases, played by a local server and a stand-in for mp-api."""

import http.server
import json
import sys
import threading
import types
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn import download
from matattn.datasets import materials_project, optimade
from matattn.errors import DataError


def optimade_entry(number):
    species = [
        {"name": "Na1", "chemical_symbols": ["Na"], "concentration": [1.0]},
        {"name": "Cl", "chemical_symbols": ["Cl"], "concentration": [1.0]},
        {"name": "mix", "chemical_symbols": ["Cu", "Au"], "concentration": [0.5, 0.5]},
        {"name": "X", "chemical_symbols": ["vacancy"], "concentration": [1.0]},
    ]
    attributes = {
        "lattice_vectors": ((4 + 0.1 * number) * np.eye(3)).tolist(),
        "cartesian_site_positions": [[0, 0, 0], [2, 2, 2]],
        "species_at_sites": ["Na1", {3: "mix", 4: "X"}.get(number, "Cl")],
        "species": species,
        "_toy_e": -0.5 * number,
        "_toy_nested": {"gga+u": {"gap": 0.1 * number}} if number else None,
    }
    if number == 5:
        attributes["lattice_vectors"] = [[4, 0, 0], [0, 4, 0], [None, None, None]]
    return {"id": f"toy-{number}", "type": "structures", "attributes": attributes}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        url = urlparse(self.path)
        query = parse_qs(url.query)
        self.server.requests.append(query)
        start = int(query.get("page", ["0"])[0])
        links = {"next": None}
        if start < 8:
            later = f"?{url.query}".split("&page=")[0] + f"&page={start + 4}"
            whole = f"{self.server.url}{url.path}{later}"
            links["next"] = [later, whole, {"href": whole}][start // 4]
        if url.path == "/loop/v1/structures":
            links["next"] = self.path
        page = {
            "data": [optimade_entry(n) for n in range(start, start + (4 if start != 3 else 3))],
            "links": links,
        }
        page["meta"] = {"time_stamp": "2026-01-01T00:00:00Z", "data_returned": 12}
        if url.path == "/disordered/v1/structures":
            page["data"], links["next"] = [optimade_entry(3)], None
        if url.path == "/odd/v1/structures":
            page = {"data": None}
        body = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


FIELDS = {"formation_energy_per_atom": "_toy_e", "band_gap": "_toy_nested.gga+u.gap"}


def ask(server, folder, base="/a", limit=100, **options):
    return optimade.load(
        "optimade", str(folder), f"{server.url}{base}", 'elements HAS "O"', FIELDS, limit,
        ["formation_energy_per_atom", "band_gap"], **options,
    )  # fmt: skip


def test_optimade(server, tmp_path):
    data = ask(server, tmp_path, download=True)
    assert [item.id for item in data.items] == [f"toy-{n}" for n in range(12) if n not in (3, 4, 5)]
    assert len(server.requests) == 3
    assert server.requests[0]["filter"] == ['elements HAS "O"']
    assert "_toy_nested" in server.requests[0]["response_fields"][0].split(",")
    assert data.items[1].z.tolist() == [11, 17]
    assert data.items[2].pos[1].tolist() == pytest.approx([2, 2, 2])
    assert data.labels()[1] == pytest.approx([-0.5, 0.1]) and np.isnan(data.labels()[0, 1])
    reasons = "\n".join(data.skipped)
    for part in ("(toy-3): bad or missing value: site 2 (mix) has partial occupancy",
                 "(toy-4): bad or missing value: 'vacancy'", "(toy-5)"):  # fmt: skip
        assert part in reasons
    assert server.url in data.note and "asked 2026-01-01" in data.note
    again = ask(server, tmp_path)
    assert again.fingerprint() == data.fingerprint() and again.skipped == data.skipped
    assert len(server.requests) == 3  # the kept answer


def test_optimade_limit(server, tmp_path):
    assert len(ask(server, tmp_path, limit=2, download=True).items) == 2
    assert len(server.requests) == 1


@pytest.mark.parametrize("base", ["/a/v1", "/a/v1/", "/a/v1.1", "/a"])
def test_optimade_versions(server, tmp_path, base):
    assert len(ask(server, tmp_path, base=base, limit=2, download=True).items) == 2


def test_optimade_mistakes(server, tmp_path):
    with pytest.raises(DataError, match="no stored answer to this query; fetch it with: python "):
        ask(server, tmp_path)
    assert not server.requests
    with pytest.raises(DataError, match="links to itself or an earlier page"):
        ask(server, tmp_path, base="/loop", download=True)
    with pytest.raises(DataError, match="not an OPTIMADE answer"):
        ask(server, tmp_path, base="/odd", download=True)
    assert not list(tmp_path.glob("*.gz"))
    with pytest.raises(DataError, match="holds no row; first problem: .*toy-3.*partial occupancy"):
        ask(server, tmp_path, base="/disordered", download=True)


@pytest.fixture
def client(monkeypatch):
    """A stand-in for mp_api.client."""

    class Rester:
        queries = []
        db_version = "2025.09.25"

        def __init__(self, key, **options):
            self.key = key
            self.materials = types.SimpleNamespace(summary=self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def search(self, **query):
            if "chemsys" in query:
                raise RuntimeError(f"refused: {self.key}")
            self.queries.append(query)
            entries = []
            for number in range(5):
                crystal = Structure(Lattice.cubic(4 + number), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
                if number == 3:
                    crystal.replace(0, {"Cu": 0.5, "Au": 0.5})
                entries.append(
                    {
                        "material_id": f"mp-{number}",
                        "structure": crystal if number % 2 else crystal.as_dict(),
                        "formation_energy_per_atom": -1.0 * number,
                        "band_gap": None if number == 1 else 1.0,
                        "bulk_modulus": {"vrh": 100.0, "voigt": 1.0} if number else None,
                    }
                )
            return entries

    module = types.ModuleType("mp_api.client")
    module.MPRester = Rester
    monkeypatch.setitem(sys.modules, "mp_api", types.ModuleType("mp_api"))
    monkeypatch.setitem(sys.modules, "mp_api.client", module)
    monkeypatch.setenv("MP_API_KEY", "secret")
    return Rester


def test_materials_project(client, tmp_path, monkeypatch):
    query = {"num_sites": [1, 4]}
    targets = ["formation_energy_per_atom", "log10_bulk_modulus"]

    def load(**options):
        return materials_project.load("materials_project", str(tmp_path), query, targets, **options)

    with pytest.raises(DataError, match="MP_API_KEY=... python train.py .*data.download=true"):
        load()
    data = load(download=True)
    assert [item.id for item in data.items] == ["mp-0", "mp-1", "mp-2", "mp-4"]
    assert data.labels()[1] == pytest.approx([-1, 2])
    assert "mp-3: site 1 has partial occupancy" in data.skipped[0]
    assert "Database version 2025.09.25" in data.note and '"num_sites": [1, 4]' in data.note
    assert client.queries[0]["num_sites"] == [1, 4] and "structure" in client.queries[0]["fields"]
    monkeypatch.delenv("MP_API_KEY")
    assert load().fingerprint() == data.fingerprint() and len(client.queries) == 1
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())


def test_materials_project_mistakes(client, tmp_path, monkeypatch):
    def load():
        return materials_project.load(
            "toy", str(tmp_path), {"chemsys": "Na-Cl"}, ["band_gap"], download=True
        )

    with pytest.raises(DataError, match="does not answer the query: refused: MP_API_KEY"):
        load()
    monkeypatch.setitem(sys.modules, "mp_api", None)
    monkeypatch.setitem(sys.modules, "mp_api.client", None)
    with pytest.raises(DataError, match="needs mp-api: pip install 'matattn"):
        load()
    monkeypatch.delenv("MP_API_KEY")
    with pytest.raises(DataError, match="MP_API_KEY is not set; get a key"):
        load()
