"""Downloads from a server in a thread: whole, resumed, broken, in two processes at once."""

import gzip
import hashlib
import http.server
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from matattn import download
from matattn.errors import DataError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/busy" and len(server.requests) < 3:
            return self.send_error(503)
        if self.path == "/challenge":
            self.send_response(202)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = 0
        ranged = self.headers.get("Range") if self.path != "/no_ranges" else None
        if ranged:
            start = int(ranged.removeprefix("bytes=").removesuffix("-"))
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        body = CONTENT[start:]
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(body)))
        if ranged:
            shown = start + 1 if self.path == "/odd_ranges" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        if self.path == "/slow":
            server.wait.wait(20)
        if self.path == "/broken" or (self.path == "/once_broken" and len(server.requests) == 1):
            body = body[: len(body) // 2]
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.wait = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.wait.set()
        server.shutdown()
        thread.join()


def test_whole(server, tmp_path, capsys):
    path = tmp_path / "deep" / "a.bin"
    download.fetch(f"{server.url}/a", path, SHA256)
    assert path.read_bytes() == CONTENT
    assert (path.parent / "a.bin.sha256").read_text() == f"{SHA256}  a.bin\n"
    assert not list(path.parent.glob("*.partial"))
    download.fetch(f"{server.url}/a", path, SHA256)
    assert server.requests == [("/a", None)]  # it is there
    assert capsys.readouterr() == ("", "")  # no progress bar outside of a terminal


@pytest.mark.parametrize("have", [1, 2**19, len(CONTENT)])
@pytest.mark.parametrize("route", ["/a", "/no_ranges"])
def test_goes_on_where_it_stopped(server, tmp_path, route, have):
    (tmp_path / "a.bin.partial").write_bytes(CONTENT[:have])
    download.fetch(f"{server.url}{route}", tmp_path / "a.bin", SHA256)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.requests == [(route, f"bytes={have}-")]


@pytest.mark.parametrize("route, have", [("/a", len(CONTENT) + 5), ("/odd_ranges", 100)])
def test_a_useless_rest_is_fetched_anew(server, tmp_path, route, have):
    (tmp_path / "a.bin.partial").write_bytes(b"x" * have)
    download.fetch(f"{server.url}{route}", tmp_path / "a.bin", SHA256)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("route", ["/once_broken", "/busy"])
def test_tries_again_by_itself(server, tmp_path, route):
    download.fetch(f"{server.url}{route}", tmp_path / "a.bin", SHA256)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_truncated(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    path = tmp_path / "a.bin"
    with pytest.raises(
        DataError, match="ended after 524,288 of 1,048,576 bytes; try again"
    ) as error:
        download.fetch(f"{server.url}/broken", path)
    for part in (server.url, str(path), "MATATTN_DATA"):
        assert part in str(error.value)
    assert not path.exists() and (tmp_path / "a.bin.partial").stat().st_size == 2**19
    download.fetch(f"{server.url}/a", path, SHA256)
    assert server.requests[-1] == ("/a", f"bytes={2**19}-")


def test_wrong_checksum(server, tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(DataError, match=f"its SHA-256 is {SHA256}, not 0000") as error:
        download.fetch(f"{server.url}/a", path, "0" * 64)
    assert str(path) in str(error.value)
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".lock"] == []


@pytest.mark.parametrize("name", ["a.zip", "a.json.gz"])
def test_what_is_no_archive_is_refused(server, tmp_path, name):
    with pytest.raises(DataError, match="what came is not the expected file .*zip"):
        download.fetch(f"{server.url}/a", tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a.zip", "a.json.gz"])
def test_damage_inside_an_archive_is_found(tmp_path, name):
    path = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.json", CONTENT)
    else:
        path.write_bytes(gzip.compress(CONTENT, compresslevel=0))
    assert download._damage(path, name) is None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert download._damage(path, name)


@pytest.mark.parametrize(
    "route, message",
    [("/missing", "answered 404 Not Found"), ("/challenge", "answered 202 no content")],
)
def test_refusals_of_the_server(server, tmp_path, route, message):
    with pytest.raises(DataError, match=message):
        download.fetch(f"{server.url}{route}", tmp_path / "a.bin")
    assert len(server.requests) == 1


def test_no_network(server, tmp_path):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="no download: .*refused.*; try again later") as error:
        download.fetch(f"{url}/a", tmp_path / "a.bin")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "a.json"])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(DataError, match="expected an address that begins with https://"):
        download.fetch(url, tmp_path / "a.bin")
    with pytest.raises(DataError, match="expected an address that begins with https://"):
        download.get_json(url)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written .*; set MATATTN_DATA to another folder"):
        download.fetch(f"{server.url}/a", tmp_path / "file" / "a.bin")


def test_two_processes_download_once(server, tmp_path):
    path = tmp_path / "a.bin"
    program = f"from matattn.download import fetch; fetch({server.url + '/slow'!r}, {str(path)!r})"
    command = [sys.executable, "-c", program]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert "waiting for another process" in _first_line(both)
    server.wait.set()
    for process in both:
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert path.read_bytes() == CONTENT and len(server.requests) == 1


def _first_line(processes):
    """Return the first line that any of the processes writes."""
    lines = []
    threads = [threading.Thread(target=lambda p=p: lines.append(p.stderr.readline()), daemon=True)
               for p in processes]  # fmt: skip
    for thread in threads:
        thread.start()
    while not lines:
        for thread in threads:
            thread.join(0.01)
    return lines[0]


def test_a_killed_process_leaves_no_lock(server, tmp_path):
    path = tmp_path / "a.bin"
    program = f"from matattn.download import fetch; fetch({server.url + '/slow'!r}, {str(path)!r})"
    process = subprocess.Popen([sys.executable, "-c", program])
    while not server.requests:
        assert process.poll() is None
        threading.Event().wait(0.01)
    process.kill()
    process.wait()
    download.fetch(f"{server.url}/a", path, SHA256)
    assert path.read_bytes() == CONTENT


def test_present(server, tmp_path):
    path = tmp_path / "a.bin"
    arguments = (path, f"{server.url}/a", "python train.py data=toy data.download=true")
    with pytest.raises(DataError) as error:
        download.present(*arguments, download=False)
    for part in (str(path), "python train.py data=toy data.download=true", server.url):
        assert part in str(error.value)
    assert not server.requests
    assert download.present(*arguments, download=True) == path
    assert download.present(*arguments, download=False) == path
    Path(path).write_bytes(b"something else")
    with pytest.raises(DataError, match="is not the file that was downloaded .see a.bin.sha256."):
        download.present(*arguments, download=True)


def test_json(server, tmp_path):
    with pytest.raises(DataError, match="the answer is not JSON"):
        download.get_json(f"{server.url}/a")
    with pytest.raises(DataError, match="answered 404"):
        download.get_json(f"{server.url}/missing")
