"""Pictures good and bad for a server, and a client that calls an ASGI application in place."""

import asyncio
import io
import json
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = (20, 30)


def some_picture(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def saved(picture, kind="PNG", **kwargs):
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, kind, **kwargs)
    return file.getvalue()


def bomb(width, height):
    """A PNG that says it is so large, and holds next to nothing."""

    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def garbage():
    """{what it is: (bytes, the status of the answer, of what its reason tells)}."""
    picture = Image.fromarray(some_picture())
    jpeg, png = saved(picture, "JPEG"), saved(picture)
    frames = [Image.fromarray(some_picture(seed)) for seed in (1, 2)]
    wide = Image.fromarray(some_picture()[..., 0].astype(np.uint16) * 257)
    return {
        "nothing": (b"", 400, "empty body"),
        "text": (b"this is no picture", 400, "no picture"),
        "cut JPEG": (jpeg[: len(jpeg) * 2 // 3], 400, "truncated"),
        "cut PNG": (png[: len(png) // 2], 400, "cannot be read"),
        "head alone": (png[:20], 400, "no picture"),
        "bomb beyond Pillow's limit": (bomb(60000, 60000), 413, "pixels"),
        "bomb": (bomb(12000, 9000), 413, "12000x9000"),
        "16 bits": (saved(wide), 415, "8 bits"),
        "animated PNG": (
            saved(picture, save_all=True, append_images=frames),
            415,
            "3 pictures",
        ),  # fmt: skip
        "animated WebP": (
            saved(picture, "WEBP", save_all=True, append_images=frames),
            415,
            "3 pictures",
        ),  # fmt: skip
        "GIF": (saved(picture.convert("P"), "GIF"), 415, "GIF"),
        "TIFF": (saved(picture, "TIFF"), 415, "TIFF"),
    }


class Answered(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def told(self):
        return json.loads(self.body)


def ask(app, method, address, body=b"", headers=None, pause=None):
    """The answer of an ASGI application; with `pause`, the body comes byte for byte."""
    return asyncio.run(asking(app, method, address, body, headers, pause))


async def asking(app, method, address, body=b"", headers=None, pause=None):
    path, _, query = address.partition("?")
    parts = [body] if pause is None else [body[i : i + 1] for i in range(len(body))]
    sent = []

    async def receive():
        if pause is not None:
            await asyncio.sleep(pause)
        part = parts.pop(0) if parts else b""
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [
            (name.lower().encode(), value.encode()) for name, value in (headers or {}).items()
        ],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answered(sent[0]["status"], told, b"".join(m.get("body", b"") for m in sent[1:]))
