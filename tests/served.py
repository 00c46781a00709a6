"""A page that `isa-tf web` serves, from a process of its own."""

import contextlib
import re
import subprocess
import threading


@contextlib.contextmanager
def page(command, **options):
    """(process, URL) of a command that serves a page; it is killed after two minutes or the block.

    Args:
        command: list, with --port=0.
        **options: of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    watch = threading.Timer(120, process.kill)
    watch.start()
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        yield process, re.match(r"open (http://127\.0\.0\.1:\d+/) ", lines[1])[1]
    finally:
        watch.cancel()
        process.kill()
        process.stdout.close()
