"""Serves models over HTTP: pictures in; class ids, overlays or JSON out.

    python -m tools.serve --model=model.keras
    python -m tools.serve --model=streets@1=old.tflite --model=streets@2=new.tflite --port=8080
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/v1/models/model/predict?format=overlay'

--model takes a file or folder of any format, NAME=PATH to call it otherwise than by its name, and
NAME@VERSION=PATH for several versions of it. It runs on Ray Serve, by itself on this machine, or
with --address in a cluster of Ray's. docs/serving.md tells what can be asked. Ctrl-C, or SIGTERM,
ends it once the requests that are running have been answered.
"""

import os
import re
import signal
import threading
from pathlib import Path

from absl import app, flags

from isa_tf import runtime, serving
from isa_tf.serving import cluster
from tools import plugins

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_MODEL = flags.DEFINE_multi_string(
    "model", None, "PATH, NAME=PATH or NAME@VERSION=PATH of a model", flag_values=FLAGS
)
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "The address to listen at; by default, this machine alone can ask.",
    flag_values=FLAGS,
)
_PORT = flags.DEFINE_integer("port", 8000, "The port to listen at.", 1, 65535, flag_values=FLAGS)
_REPLICAS = flags.DEFINE_list(
    "replicas",
    ["1"],
    "Processes a model: a number, or two, LEAST,MOST, between which Ray chooses.",
    flag_values=FLAGS,
)
_THREADS = flags.DEFINE_integer(
    "threads", None, "Threads of a process; by default its runtime chooses.", 1, flag_values=FLAGS
)
_GPUS = flags.DEFINE_float(
    "gpus", 0, "GPUs of a process; a part of one where several share.", 0, flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer(
    "batch", 1, "Images of one size that a model sees at once, at most.", 1, flag_values=FLAGS
)
_WAIT = flags.DEFINE_float(
    "wait", 0.0, "Seconds that an image waits for others of its batch.", 0, flag_values=FLAGS
)
_QUEUE = flags.DEFINE_integer(
    "queue", 100, "Requests that may wait for a model; more are answered 503.", 1, flag_values=FLAGS
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_bytes", serving.Limits.max_bytes, "The most bytes of a request.", 1, flag_values=FLAGS
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", serving.Limits.max_pixels, "The most pixels of a picture.", 1, flag_values=FLAGS
)
_BODY_SECONDS = flags.DEFINE_float(
    "body_seconds",
    serving.Limits.body_seconds,
    "Seconds in which a request must have come.",
    0,
    flag_values=FLAGS,
)
_ANSWER_SECONDS = flags.DEFINE_float(
    "answer_seconds",
    serving.Limits.answer_seconds,
    "Seconds in which a request is answered once it has come, or with 504.",
    0,
    flag_values=FLAGS,
)
_ADDRESS = flags.DEFINE_string(
    "address",
    None,
    "The address of a cluster of Ray's, or auto; by default, one is made here.",
    flag_values=FLAGS,
)
_ACCESS_LOG = flags.DEFINE_bool(
    "access_log", False, "Whether each request is logged.", flag_values=FLAGS
)
_PLUGINS = plugins.define(FLAGS)

_NAME = "isa_tf"  # of the application in Ray
_OBJECT_STORE = 256 * 2**20  # bytes: pictures as they came are all that goes through it


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if not _MODEL.value:
        raise app.UsageError("Which model? Give --model=PATH")
    try:
        models = models_of(_MODEL.value)
        least, most = replicas_of(_REPLICAS.value)
        limits = serving.Limits(
            _MAX_BYTES.value, _MAX_PIXELS.value, _BODY_SECONDS.value, _ANSWER_SECONDS.value
        )
        application = serving.application(
            models,
            limits,
            (least, most),
            _THREADS.value,
            _GPUS.value,
            _BATCH.value,
            _WAIT.value,
            _QUEUE.value,
            _PLUGINS.value,
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise app.UsageError(str(error)) from error
    count = sum(map(len, models.values()))
    needed = count * most * (_THREADS.value or 1)
    return run(application, limits, needed)


def run(application, limits, needed):
    """Serves until Ctrl-C, or SIGTERM."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers of each start
    import ray
    from ray import serve

    ended = threading.Event()
    if _ADDRESS.value is None:
        cpus = max(needed, runtime.processors())
        ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=_OBJECT_STORE)
    else:
        ray.init(address=_ADDRESS.value)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    seconds = limits.body_seconds + limits.answer_seconds + 5
    serve.start(
        http_options={
            "host": _HOST.value,
            "port": _PORT.value,
            "request_timeout_s": seconds,
        }
    )
    serve.run(
        application,
        name=_NAME,
        route_prefix="/",
        logging_config={"enable_access_log": _ACCESS_LOG.value},
    )
    print(f"ready at http://{_HOST.value}:{_PORT.value}/v1/models (Ctrl-C ends it)", flush=True)
    while not ended.wait(0.5):
        pass
    front = serve.get_deployment_handle(cluster.FRONT, _NAME)
    left = "" if front.close.remote(seconds).result(timeout_s=seconds + 5) else ", requests running"
    serve.shutdown()
    ray.shutdown()
    print(f"ended{left}", flush=True)
    return 0


def models_of(given):
    """Paths by name and version; ValueError for two of one, FileNotFoundError for none."""
    models = {}
    for text in given:
        name, _, path = text.partition("=")
        if Path(text).exists() or not path:  # a file's own name may have such a sign
            name, path = "", text
        path = Path(path).resolve()
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        name, _, version = (name or path.stem).partition("@")
        version = version or "1"
        for part in (name, version):
            if not re.fullmatch(r"[\w.=+-]+", part):
                raise ValueError(f"{part!r} is no name: letters, digits and any of ._-+= make one")
        versions = models.setdefault(name, {})
        if version in versions:
            raise ValueError(
                f"two models of the name {name!r} and version {version!r}: give one as "
                "NAME@VERSION=PATH"
            )
        versions[version] = path
    return models


def replicas_of(given):
    """(least, most) of the flag; ValueError for anything else."""
    try:
        least, most = map(int, given if len(given) == 2 else given * 2)
    except ValueError:
        least = most = 0
    if not 1 <= least <= most:
        raise ValueError(f"--replicas is a number, or LEAST,MOST, from 1; got {','.join(given)}")
    return least, most


if __name__ == "__main__":
    app.run(main)
