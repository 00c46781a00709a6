"""Pages that are followed from top to bottom: their commands, their files, their Python."""

import re
import resource
import subprocess
import time

import handbook
import numpy as np
from handbook import DOCS


def clocks():
    """Seconds by the clock, and those that ended children have had of processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.monotonic(), used.ru_utime + used.ru_stime])


class Walk:
    """A folder in which pages are followed.

    Args:
        folder: path, where everything runs.
        command: list of what starts `isa-tf`.
        python: path of the interpreter of a page's Python.
        environment: dict, the variables of all that is started.
        small: (pattern, replacement) pairs, which make sizes and steps of the pages small.
        more: dict from an argument of a command to further ones that then make it short.
    """

    def __init__(self, folder, command, python, environment, small, more=()):
        self.folder, self.command, self.python = folder, command, python
        self.environment, self.small, self.more = environment, small, dict(more)
        self.times = []  # (what, seconds, seconds of processors)

    def process(self, argv, what):
        """What a process says. It ends well; or says that formats differ in what they decide."""
        begin = clocks()
        done = subprocess.run(
            list(map(str, argv)),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        self.times.append((what, *(clocks() - begin)))
        # After two steps a model is sure of nothing.
        alike = done.returncode == 0 or (done.returncode == 1 and "  TOO FEW" in done.stdout)
        assert alike, f"{argv}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def follow(self, page, skip=lambda text: False):
        """Runs the blocks of a page; gives how many commands and pieces of Python there were."""
        blocks, _ = handbook.split((DOCS / page).read_text(encoding="utf-8"))
        counts = {"bash": 0, "python": 0}
        for block in blocks:
            text = block.text
            if skip(text):
                continue
            for pattern, small in self.small:
                text = re.sub(pattern, small, text)
            if block.title:
                (self.folder / block.title).write_text(text)
            elif block.language == "python":
                counts["python"] += 1
                self.process([self.python, "-c", text], f"Python of {page}")
            elif block.language == "bash":
                for line in re.sub(r"\\\n\s*", " ", text).splitlines():
                    counts["bash"] += self.run(line)
        return counts

    def run(self, line):
        """Runs a line of a page: 1, or 0 for one that installs, which has been done."""
        made = handbook._command("", line.strip())
        assert made, line
        if made.program == "pip":
            return 0
        name = made.program.removeprefix("isa-tf ")
        more = [flag for word in made.arguments for flag in self.more.get(word, ())]
        self.process([*self.command, name, *made.arguments, *more], made.program)
        return 1
