"""How far a tool is that goes through a data set."""

import contextlib
import sys
import time

from isa_tf.training.callbacks import Progress, duration


class Lines:
    """A function of (split, number made, of all), for `progress` of what prepares and converts.

    On a terminal one line is written over; elsewhere there is a line a minute, and one for each
    split that is done.
    """

    def __init__(self):
        # Where it is called, standard output may be sent elsewhere, to silence a library.
        self._out = sys.stdout
        self._progress = Progress(0)
        self._split, self._begin = None, None

    def __call__(self, split, made, total):
        now = time.monotonic()
        if self._begin is None or split != self._split:
            self._split, self._begin = split, (now, made)
        done = made == total
        if not done and now - self._progress.last < self._progress.every:
            return
        self._progress.last = now
        text = f"{made:,} of {total:,}" if split is None else f"{split}: {made:,} of {total:,}"
        begin, first = self._begin
        if not done and made > first:
            text += f"  done in {duration((now - begin) / (made - first) * (total - made))}"
        with contextlib.redirect_stdout(self._out):
            self._progress.say(text, keep=done)
