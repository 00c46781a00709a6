"""Writes and serves a page that runs models in the browser.

    python -m tools.demo_web --model=model.tflite

The page takes a photo or the camera's pictures, and shows the classes that LiteRT models find: no
picture leaves it. --model takes several files with commas, NAME=FILE to call them otherwise than
by their files' names. What is written into --output is a static folder that anyone can host;
docs/web.md tells how. Ctrl-C ends the server.
"""

import signal
from pathlib import Path

from absl import app, flags

from isa_tf import web
from tools import program
from tools.predict import find_images

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_MODEL = flags.DEFINE_list(
    "model",
    [],
    "The .tflite file of a segmentation model, or NAME=FILE; several with commas.",
    flag_values=FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The folder to write; by default one named after the first model, beside it.",
    flag_values=FLAGS,
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Pictures that the page offers as examples: a file, a folder, or a pattern in quotes.",
    flag_values=FLAGS,
)
_TITLE = flags.DEFINE_string("title", "Segmentation", "The page's heading.", flag_values=FLAGS)
_CLEAR = flags.DEFINE_list(
    "clear",
    ["0"],
    "Classes, ids or names, that are not coloured until the person asks for them.",
    flag_values=FLAGS,
)
_SERVE = flags.DEFINE_bool(
    "serve", True, "Whether to serve the folder, once it is written.", flag_values=FLAGS
)
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "The address to listen at; by default, this machine alone can open the page.",
    flag_values=FLAGS,
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "The port to listen at; 0 for any that is free.", 0, 65535, flag_values=FLAGS
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments: {' '.join(argv[1:])} (a pattern of --images needs quotes)"
        )
    if not _MODEL.value:
        raise app.UsageError("Which model? Give --model=FILE.tflite")
    try:
        models = _models(_MODEL.value)
        first = next(iter(models.values()))
        output = Path(_OUTPUT.value) if _OUTPUT.value else first.with_name(f"{first.stem}_web")
        examples = find_images(_IMAGES.value) if _IMAGES.value else []
        clear = [text for text in _CLEAR.value if text]
        folder = web.write(output, models, examples, _TITLE.value, clear)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise app.UsageError(str(error)) from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    print(f"{folder}: {size / 1e6:.1f} MB, {count}; any host of static files will do")
    if _SERVE.value:
        _serve(folder)
    return 0


def _serve(folder):
    """Serves until Ctrl-C, or SIGTERM."""
    try:
        server = web.make_server(folder, _HOST.value, _PORT.value)
    except OSError as error:
        raise app.UsageError(
            f"cannot listen at {_HOST.value}:{_PORT.value} ({error}); --port=0 takes a free one"
        ) from error
    host = f"[{_HOST.value}]" if ":" in _HOST.value else _HOST.value
    print(f"open http://{host}:{server.server_port}/ (Ctrl-C ends it)", flush=True)

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        signal.signal(signal.SIGTERM, before)
        server.server_close()


def _models(given):
    """Path of each model by its name; ValueError for two of one name."""
    models = {}
    for text in given:
        name, _, path = text.partition("=")
        if Path(text).exists() or not path:  # a file's own name may have such a sign
            name, path = "", text
        path = Path(path)
        name = name or path.stem
        if name in models:
            raise ValueError(f"two models of the name {name!r}: give one as NAME=FILE")
        models[name] = path
    return models


if __name__ == "__main__":
    program.run(main)
