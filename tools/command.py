"""The command `isa-tf`: tools and experiments under one name, inside of a checkout and outside.

    isa-tf --help
    isa-tf train --config=camvid --workdir=runs/camvid

`isa-tf NAME` runs the module that `COMMANDS` gives the name to, as `python -m MODULE` does in a
checkout; `python -m tools.command` is the same command. An install carries this folder and
experiments/ as `isa_tf_command.tools` and `isa_tf_command.experiments`, since nobody's environment
should have packages called `tools` and `experiments`. In the process of the command alone they
have these names, so whatever they and a config of one's own import is found in either place.

A help must not wait for TensorFlow, which every tool imports. So `--help` prints what was recorded
in help/, by `python -m tools.command --record`; a test holds it against what the tools say.
"""

import ast
import contextlib
import importlib.util
import os
import re
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

# A name, and the module that it runs. Whoever adds one records its help.
COMMANDS = {
    "check": "tools.check_dataset",
    "prepare": "tools.prepare_dataset",
    "convert_labels": "tools.convert_labels",
    "features": "experiments.features",
    "train": "experiments.train",
    "evaluate": "experiments.evaluate",
    "predict": "tools.predict",
    "export": "tools.export",
    "serve": "tools.serve",
    "web": "tools.demo_web",
    "convert": "tools.convert",
    "compare": "tools.compare",
    "affinity": "tools.visualize_affinity",
    "benchmark": "tools.benchmark",
    "ablate": "experiments.ablate",
    "gains": "experiments.gains",
    "demo": "experiments.demo",
}

ROOT = Path(__file__).resolve().parents[1]  # where tools/ and experiments/ lie
HELP = Path(__file__).resolve().with_name("help")
_PROGRAM = "isa-tf"
_HELP = {"--help", "-help", "-h"}
_VERBOSITY = "TF_CPP_MIN_LOG_LEVEL"

# What TensorFlow writes as it starts, of no consequence to anyone; the second where no GPU is.
_CHATTER = re.compile(rb"I\d{4} |WARNING: All log messages before absl::InitializeLog")
_OF_GPUS = re.compile(rb"[WE]\d{4} .*(cuda|cuInit|GPU|TensorRT)")
_NVIDIA = Path("/proc/driver/nvidia")


def main(argv=None):
    """Runs the command; returns its exit status, or exits with that of what it runs.

    Args:
        argv: list of str, its arguments. Defaults to those of the process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if sys.path[:1] != [str(ROOT)]:
        sys.path.insert(0, str(ROOT))
    name, arguments = (argv[0], argv[1:]) if argv else (None, [])
    if name is None or name in _HELP:
        print(overview())
        return 0 if name else 2
    if name == "--version":
        print(f"{_PROGRAM} {_alone('version')['__version__']}")
        return 0
    if name == "--record":
        return record(*arguments)
    if name not in COMMANDS:
        print(f"error: {_alone('names')['unknown']('command', name, COMMANDS)}", file=sys.stderr)
        print(f"({_PROGRAM} --help tells what there is)", file=sys.stderr)
        return 2
    text = HELP / f"{name}.txt"
    if _HELP & {*arguments} and text.exists():
        print(text.read_text(encoding="utf-8"), end="")
        return 0
    sys.path.append(os.getcwd())  # for plugins, as with `python -m`, but behind all else
    with quiet_start():
        _start_tensorflow()
    return run(name, arguments)


def overview():
    """What the command says of itself: each name with the first line of its module."""
    width = max(map(len, COMMANDS))
    lines = [f"usage: {_PROGRAM} COMMAND [--FLAG=VALUE ...]", ""]
    for name, module in COMMANDS.items():
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        lines.append(f"  {name:<{width}}  {ast.get_docstring(tree).splitlines()[0]}")
    return "\n".join([*lines, "", f"{_PROGRAM} COMMAND --help tells more, {_PROGRAM} --version."])


def run(name, arguments):
    """Runs the module of a name as the program, which exits by itself.

    Args:
        name: str, of `COMMANDS`.
        arguments: list of str, for the module.
    """
    module = COMMANDS[name]
    sys.argv = [f"{_PROGRAM} {name}", *arguments]
    # As `runpy` does, but with a program's name that is no path, and a docstring that tells it.
    # A process that it spawns finds the module by its spec.
    spec = importlib.util.find_spec(module)
    tree = ast.parse(spec.loader.get_source(module))
    tree.body[0].value.value = spell(tree.body[0].value.value)
    program = importlib.util.module_from_spec(spec)
    program.__name__ = "__main__"
    sys.modules["__main__"] = program
    exec(compile(tree, spec.origin, "exec"), vars(program))
    return 0


def spell(text):
    """A text with its commands as this process was started: `isa-tf NAME`, or as they are.

    Args:
        text: str, in which commands are spelled as in a checkout.

    Example:

    >>> spell("python -m tools.export --model=best.keras")
    'python -m tools.export --model=best.keras'
    """
    if not sys.argv[0].startswith(f"{_PROGRAM} "):
        return text
    for name, module in COMMANDS.items():
        text = re.sub(rf"python -m {re.escape(module)}\b", f"{_PROGRAM} {name}", text)
    return re.sub(r"--config=experiments/configs/(\w+)\.py", r"--config=\1", text)


@contextlib.contextmanager
def quiet_start():
    """For as long as it lasts, keeps from standard error what TensorFlow says as it starts.

    No variable silences all of it: it is written before TensorFlow's logging is set up. All else
    is passed on, at the end; all of it is where TF_CPP_MIN_LOG_LEVEL is 0 or 1, or on an error.
    What is said of GPUs stays where the machine has one of NVIDIA.
    """
    # At 2 there would be an "error" each time: of an operation that oneDNN leaves out.
    if os.environ.setdefault(_VERBOSITY, "2" if _NVIDIA.exists() else "3") in ("0", "1"):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        everything = True
        try:
            yield
            everything = False
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said:
                of_none = _OF_GPUS.match(line) and not _NVIDIA.exists()
                if everything or not (_CHATTER.match(line) or of_none):
                    os.write(2, line)


def _start_tensorflow():
    import tensorflow as tf
    from absl import logging

    import isa_tf  # noqa: F401 (what every tool imports)

    tf.config.list_physical_devices()  # the first time, it tells what it does not find
    # Of every step of an export it tells at INFO; --verbosity=0 brings it back.
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")


def _alone(module):
    """The names in a file of isa_tf that imports nothing of it, without importing the package."""
    package = importlib.util.find_spec("isa_tf")
    return runpy.run_path(str(Path(package.origin).with_name(f"{module}.py")))


# === Recording help ===


def record(folder=HELP):
    """Writes what each module says of itself into a folder, a file NAME.txt each.

    Args:
        folder: path. Defaults to where `--help` reads it.

    Returns:
        0, or 1 where a module says nothing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_start():
        _start_tensorflow()
    failed = 0
    for name in COMMANDS:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            # A process for each: they all define the program's flags.
            if not (child := os.fork()):
                _tell(name, said)
            os.waitpid(child, 0)
            said.seek(0)
            text = said.read()
        if "\nflags:\n" not in text:
            print(f"{name} has no help:\n{text}", file=sys.stderr)
            failed = 1
            continue
        text = re.sub(rf"'{re.escape(str(ROOT))}/experiments/configs/(\w+)\.py'", r"'\1'", text)
        usage = f"usage: {_PROGRAM} {name} [--FLAG=VALUE ...]\n\n{text.strip()}\n"
        (folder / f"{name}.txt").write_text(usage, encoding="utf-8")
    return failed


def _tell(name, file):
    """The end of a process that writes a module's help into a file."""
    try:
        with contextlib.redirect_stdout(file):
            run(name, ["--helpshort"])
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        file.flush()
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
