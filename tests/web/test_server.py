import http.client
import socket
import threading

import pytest

from isa_tf import web


@pytest.fixture
def site(tmp_path):
    """A folder with a secret beside it, and a link to that."""
    (tmp_path / "secret.txt").write_text("nobody's")
    folder = tmp_path / "site"
    (folder / "wasm").mkdir(parents=True)
    (folder / "index.html").write_text("<p>here")
    (folder / "page.js").write_text("1")
    (folder / "wasm" / "a.wasm").write_bytes(b"\0asm")
    (folder / "models").mkdir()
    (folder / "models" / "m.tflite").write_bytes(b"model")
    (folder / "ä b.png").write_bytes(b"picture")
    (folder / "out").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest.fixture
def serve():
    """Starts servers of folders; each gives (server, ask)."""
    servers = []

    def serve(folder, **options):
        server = web.make_server(folder, port=0, **options)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))

        def ask(path, method="GET", **headers):
            connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
            connection.close()
            return found

        return server, ask

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_files_and_headers(site, serve):
    server, ask = serve(site)
    assert server.server_address[0] == "127.0.0.1"
    for path, kind, body in (
        ("/", "text/html; charset=utf-8", b"<p>here"),
        ("/?x=1", "text/html; charset=utf-8", b"<p>here"),
        ("/page.js", "text/javascript; charset=utf-8", b"1"),
        ("/wasm/a.wasm", "application/wasm", b"\0asm"),
        ("/models/m.tflite", "application/octet-stream", b"model"),
        ("/%C3%A4%20b.png", "image/png", b"picture"),
    ):
        status, headers, got = ask(path)
        assert (status, headers["content-type"], got) == (200, kind, body), path
        # What a page needs to have threads, and what keeps it from telling anybody anything.
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["content-security-policy"].startswith(web.POLICY)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-length"] == str(len(body))
    status, headers, got = ask("/page.js", "HEAD")
    assert (status, got, headers["content-length"]) == (200, b"", "1")
    modified = headers["last-modified"]
    assert ask("/page.js", **{"If-Modified-Since": modified})[0] == 304


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/../secret.txt",
        "/wasm/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/..%5csecret.txt",
        "//secret.txt",
        "/out",  # a link that leads out
        "/page.js%00",
        "/" + 5000 * "a",
        "/wasm",
        "/wasm/",
        "/models/",
        "/page.js/",
    ],
)
def test_nothing_else_is_served(site, serve, path):
    _, ask = serve(site)
    status, headers, got = ask(path)
    assert status == 404 and b"nobody" not in got and b".wasm" not in got
    assert "location" not in headers


def test_absolute_paths_lead_nowhere(site, serve):
    _, ask = serve(site)
    secret = site.parent / "secret.txt"
    for path in (str(secret), f"/{secret}", f"/%2f{secret}"):
        assert ask(path)[0] == 404


def test_it_only_tells(site, serve):
    _, ask = serve(site)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask("/index.html", method)[0] == 501
    assert (site / "index.html").read_text() == "<p>here"


def test_others_are_answered_while_one_says_nothing(site, serve):
    server, ask = serve(site)
    with socket.create_connection(server.server_address[:2]) as silent:
        silent.sendall(b"GET /page")
        assert ask("/page.js")[0] == 200


def test_what_cannot_be_served(tmp_path, site, serve):
    with pytest.raises(FileNotFoundError, match="no page"):
        web.make_server(tmp_path)
    server, _ = serve(site)
    with pytest.raises(OSError):
        web.make_server(site, port=server.server_port)
