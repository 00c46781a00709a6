"""Fresh processes that measure: of one case each, or contestants that work when they are called.

A process is a module run by `python -m MODULE WHAT JSON`. What it has to say are lines "answer
JSON" on its standard output, among whatever libraries print.
"""

import json
import os
import subprocess
import sys

from tools.bench.machine import ROOT

_ANSWER = "answer "


class Failed(ChildProcessError):
    """A measuring process that has ended without an answer."""


def apart(module, case, environment=None):
    """What a module measures of one case, in a process of its own.

    Args:
        module: str, such as "tools.bench.measure", which `tell`s one answer.
        case: what JSON can hold, for it.
        environment: dict of variables beside this process's. Defaults to none.

    Returns:
        The answer.

    Raises:
        Failed: where it ends without one, with the last line that it had to say.
    """
    done = subprocess.run(
        _command(module, "measure", case),
        cwd=ROOT,
        env=_variables(environment),
        capture_output=True,
        text=True,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode or not told:
        last = done.stderr.strip().splitlines()[-1:] or ["killed, perhaps for its memory"]
        raise Failed(last[0])
    return json.loads(told[-1].removeprefix(_ANSWER))


def tell(answer):
    """Says an answer, in a process that another one has started."""
    print(_ANSWER + json.dumps(answer), flush=True)


def serve(answers):
    """Answers questions until there are no more, in the process of a `Contestant`.

    Args:
        answers: dict from a question to a function of what else is told, which gives what JSON can
            hold.
    """
    for line in sys.stdin:
        question, *told = json.loads(line)
        tell(answers[question](*told))


class Contestant:
    """A process that holds something and works only when it is asked.

    To be used in a `with` block, at the end of which it is ended.

    Args:
        name: str, for errors.
        module: str, which `serve`s when it is started with "contestant" and the case.
        case: what JSON can hold, for it.
        environment: dict of variables beside this process's. Defaults to none.
    """

    def __init__(self, name, module, case, environment=None):
        self.name = name
        self.process = subprocess.Popen(
            _command(module, "contestant", case),
            cwd=ROOT,
            env=_variables(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *question):
        """The answer to a question and what is told with it.

        Raises:
            Failed: where the process has ended.
        """
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; that is told below
        for line in self.process.stdout:
            if line.startswith(_ANSWER):
                return json.loads(line.removeprefix(_ANSWER))
        raise Failed(f"{self.name} has ended; what it had to say is above")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # of a question that it never read


def start(module, what, case):
    """A process of a module that writes files and has no answer: a `subprocess.Popen`."""
    return subprocess.Popen(_command(module, what, case), cwd=ROOT, env=_variables(), text=True)


def _command(module, what, case):
    return [sys.executable, "-m", module, what, json.dumps(case)]


def _variables(more=None):
    """Those of a process: TensorFlow says nothing as it starts, if it is not told to."""
    return {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **(more or {})}
