"""The cache: a file has its name when it is whole and checked, and not before."""

import hashlib
import http.server
import json
import os
import threading
import time

import pytest

from isa_tf.weights import cache

CONTENT = b"\x80\x02" + bytes(range(256)) * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "model.pth"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "isa_tf"


@pytest.fixture
def publish():
    """Serves some bytes in two halves: function (content, claimed length, call between) -> url."""
    served = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content, claimed, between = served[-1]
            self.send_response(200)
            self.send_header("Content-Length", str(claimed))
            self.end_headers()
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.wfile.flush()
            between()
            self.wfile.write(content[half:])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()

        def publish(content=CONTENT, claimed=None, between=lambda: None):
            served.append((content, claimed or len(content), between))
            return f"http://127.0.0.1:{running.server_port}/{NAME}"

        yield publish
        running.shutdown()


def listed(folder):
    return sorted(os.listdir(folder)) if folder.exists() else []


def fetch_and_look(folder, publish):
    """Fetches the file; the names that were in the folder when half of it had been sent."""
    seen = []

    def look():
        end = time.monotonic() + 30
        while not listed(folder) and time.monotonic() < end:
            time.sleep(0.01)
        seen.extend(listed(folder))

    cache.fetch(publish(between=look), NAME)
    return seen


@pytest.mark.parametrize("sha256", [None, DIGEST[:8], DIGEST])
def test_a_file_is_fetched_once(folder, publish, sha256):
    url = publish()
    path = cache.fetch(url, NAME, sha256, len(CONTENT))
    assert path == folder / NAME and path.read_bytes() == CONTENT
    # Where a sum is published nothing has to be remembered.
    assert listed(folder) == ([NAME, f"{NAME}.json"] if sha256 is None else [NAME])
    publish(b"another one")
    assert cache.fetch(url, NAME, sha256).read_bytes() == CONTENT


def test_what_is_on_its_way_has_another_name(folder, publish):
    """A process that is killed leaves what there is at this moment."""
    seen = fetch_and_look(folder, publish)
    assert len(seen) == 1 and seen[0] not in (NAME, f"{NAME}.json")
    assert listed(folder) == [NAME, f"{NAME}.json"]


def test_what_was_left_by_a_killed_process_is_not_taken(folder, publish):
    (left,) = fetch_and_look(folder, publish)
    for name in listed(folder):
        (folder / name).unlink()
    # The number of a process comes again: this one's would be the very same file.
    others = f".new-1-{NAME}"
    for name in (left, others):
        (folder / name).write_bytes(CONTENT[:99])
    assert cache.fetch(publish(), NAME).read_bytes() == CONTENT
    record = json.loads((folder / f"{NAME}.json").read_text())
    assert record == {"sha256": DIGEST, "bytes": len(CONTENT)}
    assert listed(folder) == [others, NAME, f"{NAME}.json"]


@pytest.mark.parametrize(
    ("content", "claimed", "known", "error", "message"),
    [
        (CONTENT, 2 * len(CONTENT), {}, OSError, "cannot fetch http.*put the file at .*model.pth"),
        (b" <!DOCTYPE html>" + CONTENT, None, {}, ValueError, r"a web page \(HTML\).* not kept"),
        (CONTENT, None, {"sha256": "0123abcd"}, ValueError, f"{DIGEST[:8]}, .* with 0123abcd"),
        (CONTENT, None, {"size": 99}, ValueError, "has 25,602 bytes, the published file has 99"),
    ],
    ids=["cut", "html", "sum", "size"],
)
def test_nothing_is_kept_of_a_wrong_file(folder, publish, content, claimed, known, error, message):
    with pytest.raises(error, match=message):
        cache.fetch(publish(content, claimed), NAME, **known)
    assert listed(folder) == []


@pytest.mark.parametrize("known", [{"sha256": "0123abcd"}, {"size": 99}])
def test_a_file_that_was_put_there_by_hand(folder, publish, known):
    folder.mkdir(parents=True)
    path = folder / NAME
    path.write_bytes(CONTENT)
    with pytest.raises(ValueError, match="model.pth: it.* delete it to fetch it again, see http"):
        cache.fetch(publish(b"another one"), NAME, **known)
    assert path.read_bytes() == CONTENT and listed(folder) == [NAME]
    url = "https://a.page/for_people"
    assert cache.fetch(url, NAME, DIGEST[:8], len(CONTENT), by_program=False) == path


def test_a_file_without_published_sum_stays_what_it_was(folder, publish):
    url = publish()
    path = cache.fetch(url, NAME)
    record = path.with_name(f"{NAME}.json")
    first = record.read_text()
    path.write_bytes(b"another")
    with pytest.raises(ValueError, match="has changed since its first use.*model.pth.json to use"):
        cache.fetch(url, NAME)
    assert path.read_bytes() == b"another" and record.read_text() == first
    # Nor may its publisher change it.
    path.unlink()
    with pytest.raises(ValueError, match=f"{url}: .* has changed since its first use"):
        cache.fetch(publish(b"\x80\x02another"), NAME)
    assert record.read_text() == first and listed(folder) == [record.name]
    record.unlink()
    assert cache.fetch(url, NAME).read_bytes() == b"\x80\x02another"


@pytest.mark.parametrize("damaged", ["", "[3]"])
def test_a_damaged_record_is_told_apart_from_a_damaged_file(folder, publish, damaged):
    url = publish()
    path = cache.fetch(url, NAME)
    record = path.with_name(f"{NAME}.json")
    record.write_text(damaged)
    with pytest.raises(
        ValueError, match="recorded of it .*cannot be read; delete .*pth.json to use"
    ):
        cache.fetch(url, NAME)
    record.unlink()
    assert cache.fetch(url, NAME) == path and record.exists()


def test_what_no_program_can_fetch(folder):
    with pytest.raises(OSError, match=r"no program can fetch x\.pth: see https://drive.*isa_tf/x"):
        cache.fetch("https://drive.google.com/1", "x.pth", by_program=False)
    assert listed(folder) == []
