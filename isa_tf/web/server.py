"""A server of static files with the headers that threads in a browser need."""

import http.server
import socket
from pathlib import Path

from isa_tf.hints import StrPath
from isa_tf.web.folder import POLICY

_HEADERS = {
    # Pages that are isolated from others may share memory among threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked again each time, and answered 304
}


def make_server(
    folder: StrPath, host: str = "127.0.0.1", port: int = 8000
) -> http.server.ThreadingHTTPServer:
    """A server of the files of a folder, and of nothing else.

    It answers GET and HEAD, lists no folders, follows no link that leads out, and is for looking
    at a page rather than for the world: `isa_tf.web.write` makes folders that any host serves.

    Args:
        folder: path of the folder, as `isa_tf.web.write` made it.
        host: str, the address to listen at. Defaults to "127.0.0.1": this machine alone.
        port: int, 0 for any that is free. Defaults to 8000.

    Returns:
        `http.server.ThreadingHTTPServer`; `serve_forever()` runs it, `server_port` is its port.

    Raises:
        FileNotFoundError: for a folder without `index.html`.
        OSError: where it cannot listen there.

    Example:

    >>> Path("site").mkdir()
    >>> _ = Path("site/index.html").write_text("what isa_tf.web.write wrote")
    >>> server = isa_tf.web.make_server("site", port=0)
    >>> server.server_address[0]
    '127.0.0.1'
    >>> server.server_close()
    """
    top = Path(folder).resolve()
    if not (top / "index.html").is_file():
        raise FileNotFoundError(f"{folder} holds no page")

    class Handler(_Handler):
        root = top

    return (_Server6 if ":" in host else http.server.ThreadingHTTPServer)((host, port), Handler)


class _Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


class _Handler(http.server.SimpleHTTPRequestHandler):
    root: Path | None = None
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "isa_tf", ""
    timeout = 60  # seconds that a client may say nothing
    extensions_map = {
        "": "application/octet-stream",
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".txt": "text/plain; charset=utf-8",
        ".wasm": "application/wasm",
        ".jpg": "image/jpeg",
        ".jpeg": "image/jpeg",
        ".png": "image/png",
        ".webp": "image/webp",
        ".gif": "image/gif",
        ".bmp": "image/bmp",
    }

    def __init__(self, *args):
        super().__init__(*args, directory=str(self.root))

    def send_head(self):
        if self.path.split("?")[0].split("#")[0] == "/":
            self.path = "/index.html"
        try:
            path = Path(self.translate_path(self.path)).resolve()
            found = path.is_file() and path.is_relative_to(self.root)
        except (ValueError, OSError):  # no name of a file
            found = False
        if not found:
            self.send_error(404)
            return None
        return super().send_head()

    def end_headers(self):
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args):
        """Nothing is printed here."""
