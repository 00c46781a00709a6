"""Puts a server under load: starts `tools.serve`, asks it, and compares what it answers.

    python -m tools.load --model=model.tflite --images=camvid/val/images --seconds=600 --users=4

Everything happens on this machine, at 127.0.0.1, for as long as --seconds says. In one run:

* the predictor alone, in a bare loop, before the server starts and after it has ended
* the server under Locust's users, who ask one request after the other; a request in twenty is
  garbage, which must be answered 4xx with its reason, and one client sends a byte a second
* with --kill, the end of a replica by SIGKILL after so many seconds
* the memory of the server's processes, every two seconds; SIGTERM in the end

Answers are compared with the predictor's, pixel by pixel. Needs the extras serve and load.
"""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_MODEL = flags.DEFINE_string("model", None, "The model to serve.", flag_values=FLAGS)
_IMAGES = flags.DEFINE_string("images", None, "A folder, or a pattern.", flag_values=FLAGS)
_COUNT = flags.DEFINE_integer("count", 12, "How many images to ask for.", 1, flag_values=FLAGS)
_SECONDS = flags.DEFINE_integer("seconds", 30, "How long to ask.", 5, 3600, flag_values=FLAGS)
_USERS = flags.DEFINE_integer("users", 4, "Who ask at the same time.", 1, 64, flag_values=FLAGS)
_GARBAGE = flags.DEFINE_float("garbage", 0.05, "Its share.", 0, 1, flag_values=FLAGS)
_KILL = flags.DEFINE_integer(
    "kill", None, "Kill a replica after so many seconds.", 1, flag_values=FLAGS
)
_LOOP = flags.DEFINE_integer("loop", 10, "Seconds of each bare loop.", 1, flag_values=FLAGS)
_PORT = flags.DEFINE_integer("port", 8017, "The server's.", 1, 65535, flag_values=FLAGS)
_SERVE = flags.DEFINE_string("serve", "", "More flags of tools.serve.", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "A file for the results, JSON.", flag_values=FLAGS)
_START_SECONDS = 120


def main(argv):
    if len(argv) > 1 or None in (_MODEL.value, _IMAGES.value):
        raise app.UsageError("Give --model and --images, and nothing else")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        before = _alone(folder)
        found = _under_load(folder)
        after = _alone(folder)
    bare = (before["bare"] + after["bare"]) / 2
    found["bare"] = {"before": before, "after": after, "rate": bare}
    found["share_of_bare"] = found["rate"] / bare
    text = json.dumps(found, indent=1)
    print(text)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text + "\n", encoding="utf-8")
    return 0 if found["right"] else 1


def _alone(folder):
    """`prepare` in a process of its own, since Locust and TensorFlow do not go together."""
    code = "import sys; from tools import load; load.prepare(*sys.argv[1:])"
    told = _MODEL.value, _IMAGES.value, _COUNT.value, folder, _LOOP.value
    command = [sys.executable, "-c", code, *map(str, told)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def prepare(model, images, count, folder, seconds):
    """Writes pictures and what is to be answered to them, and measures the predictor alone."""
    import numpy as np

    import isa_tf
    from isa_tf import runtime, serving
    from tools.predict import find_images

    folder = Path(folder)
    paths = find_images(images)
    paths = paths[:: max(len(paths) // int(count), 1)][: int(count)]
    predictor = isa_tf.load_predictor(model, runtime.processors())
    service = serving.Service(predictor)
    pictures = [path.read_bytes() for path in paths]
    bodies = {f"good_{i}": contents for i, contents in enumerate(pictures)}
    bodies["good_cmyk"] = _cmyk(pictures[0])
    for kind, contents in bodies.items():
        image = service.read(contents, serving.Options())
        result = predictor(image)
        (folder / f"{kind}.picture").write_bytes(contents)
        np.save(folder / f"{kind}.ids.npy", result[0])
        drawn = service.write(image, result, serving.Options("overlay"))
        (folder / f"{kind}.overlay.png").write_bytes(drawn.body)
    for kind, contents in garbage(pictures[0]).items():
        (folder / f"{kind}.garbage").write_bytes(contents)
    decoded = [service.read(each, serving.Options()) for each in pictures]
    rates = {}
    for what in ("bare", "whole"):  # the predictor alone; and with reading and writing
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < float(seconds):
            i = done % len(decoded)
            if what == "bare":
                predictor(decoded[i])
            else:
                service.answer(pictures[i], serving.Options("ids"))
            done += 1
        rates[what] = done / (time.perf_counter() - start)
    print(json.dumps(rates))


def _cmyk(contents):
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(contents)).convert("RGB").convert("CMYK").save(file, "JPEG", quality=92)
    return file.getvalue()


def garbage(contents):
    """Bodies that are not to be answered, by their kind and the status: {"400_text": ...}."""
    import struct
    import zlib

    import numpy as np
    from PIL import Image

    def saved(picture, kind, **kwargs):
        file = io.BytesIO()
        picture.save(file, kind, **kwargs)
        return file.getvalue()

    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    picture = Image.open(io.BytesIO(contents)).convert("RGB")
    jpeg = saved(picture, "JPEG")
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000_000), 9)
    bomb = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    wide = Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 257)
    frames = [picture, picture.rotate(90), picture.rotate(180)]
    return {
        "400_text": b"this is no picture\n" * 100,
        "400_empty": b"",
        "400_cut_jpeg": jpeg[: len(jpeg) // 2],
        "400_json": b'{"image": [1, 2',
        "413_bomb": b"\x89PNG\r\n\x1a\n" + bomb,
        "413_12000x9000": saved(Image.new("L", (12000, 9000), 99), "JPEG"),
        "415_16_bits": saved(wide, "PNG"),
        "415_animated": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "415_gif": saved(picture.convert("P"), "GIF"),
        "415_json": b'{"image": []}',
    }


def _under_load(folder):
    import psutil

    here = f"http://127.0.0.1:{_PORT.value}"
    command = [sys.executable, "-m", "tools.serve", f"--model=model={_MODEL.value}"]
    command += [f"--port={_PORT.value}", *_SERVE.value.split()]
    log = open(folder / "server.log", "w+")
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(server, folder / "server.log")
        memory, killed = [], None
        users = _users(folder, here)
        tree, start = psutil.Process(server.pid), time.monotonic()
        while users.poll() is None:
            time.sleep(2)
            passed = time.monotonic() - start
            memory.append((passed, _memory(tree)))
            if _KILL.value and killed is None and passed >= _KILL.value:
                killed = _kill_replica(tree)
        found = json.loads((folder / "found.json").read_text())
        server.send_signal(signal.SIGTERM)
        found["server_exit"] = server.wait(90)
    finally:
        if server.poll() is None:  # what Ray started would outlive it
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                process.kill()
        log.seek(0)
        print(log.read()[-6000:], file=sys.stderr)
        log.close()
    found["killed"] = killed
    found["memory_mb"] = _drift(memory)
    if _OUTPUT.value:
        with open(Path(_OUTPUT.value).with_suffix(".memory.csv"), "w", newline="") as file:
            csv.writer(file).writerows(memory)
    return found


def _wait_for(server, log):
    end = time.monotonic() + _START_SECONDS
    while "ready at" not in log.read_text():
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError("the server does not start")
        time.sleep(0.5)


def _users(folder, here):
    users = Path(__file__).with_name("load_users.py")
    command = [sys.executable, "-m", "locust", "-f", users, "--headless", "--host", here]
    command += ["-u", str(_USERS.value + 1), "-r", "20", "-t", f"{_SECONDS.value}s"]
    command += [
        "--stop-timeout",
        "30",
        "--loglevel",
        "ERROR",
        "--only-summary",
        "--exit-code-on-error",
        "0",
    ]
    told = {"LOAD_FOLDER": str(folder), "LOAD_GARBAGE": str(_GARBAGE.value)}
    return subprocess.Popen(command, env={**os.environ, **told}, stdout=sys.stderr)


def _memory(tree):
    """MB of each process of a tree, by what it is."""
    import psutil

    found = {}
    for process in [tree, *tree.children(recursive=True)]:
        try:
            name = (process.cmdline() or [process.name()])[0].split("/")[-1].strip()
            name = name.partition(".")[0]  # behind which Ray says what it is at
            found[name] = found.get(name, 0) + process.memory_info().rss / 1e6
        except psutil.Error:
            continue
    return found


def _drift(memory):
    """MB of each kind of process a fifth into the run and in the end (means of a tenth)."""
    tenth = max(len(memory) // 10, 1)
    early, late = memory[2 * tenth : 3 * tenth], memory[-tenth:]

    def mean(rows, name):
        return sum(row.get(name, 0) for _, row in rows) / len(rows)

    names = sorted({name for _, row in memory for name in row})
    found = {name: [round(mean(early, name), 1), round(mean(late, name), 1)] for name in names}
    found["all"] = [round(sum(value[i] for value in found.values()), 1) for i in (0, 1)]
    return found


def _kill_replica(tree):
    for process in tree.children(recursive=True):
        name = " ".join(process.cmdline())
        if "ServeReplica" in name and "model@1" in name:
            process.kill()
            return {"pid": process.pid, "name": name.strip()}
    raise RuntimeError("no replica is there to be killed")


if __name__ == "__main__":
    app.run(main)
