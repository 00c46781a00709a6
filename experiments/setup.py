"""From a config to the objects of an experiment; shared by training and evaluation."""

import json
import shlex
import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from isa_tf import data, files, runtime, training, visualize
from isa_tf.names import unknown
from tools import command

CONFIGS = Path(__file__).resolve().with_name("configs")


def define_config_flag(default=None, text="The experiment"):
    """Defines --config, the file of an experiment, and --config.KEY=VALUE to change it.

    Args:
        default: str, the name of a config. Defaults to none.
        text: str, what it is of.
    """
    text = f"{text}: a file, or one of {', '.join(_configs())}; recipes:NAME for one of several."
    config_flags.DEFINE_config_file("config", default and find_config(default), text)
    flag = flags.FLAGS["config"]
    flag.parser = _ConfigParser(flag.parser)
    # The program's own, whose help shows it, although it is defined here.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


class _ConfigParser(flags.ArgumentParser):
    """A parser of paths that takes names too."""

    def __init__(self, of_paths):
        self.of_paths = of_paths

    def parse(self, given):
        path = find_config(given)
        try:
            return self.of_paths.parse(path)
        except Exception as error:
            # It has put a traceback into what it says; what was raised in the file is behind it.
            raise ValueError(_in_file(path, error.__context__ or error)) from error

    def flag_type(self):
        return self.of_paths.flag_type()


def _in_file(path, error):
    """What is wrong with the file of a config; of a refusal of its own, what that says."""
    if isinstance(error, ValueError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    name = path.split(":", 1)[0]
    line = next(
        (f"line {frame.lineno}: " for frame in reversed(frames) if frame.filename == name), ""
    )
    return f"{name} is no config: {line}{type(error).__name__}: {error}"


def find_config(given):
    """The file of a config, wherever the program runs.

    Args:
        given: str, a path; or, where no file lies there, the name of a config that comes with the
            experiments, or its path in a checkout. A colon and what `get_config` is given may
            follow.

    Returns:
        The path, str, with the colon and what follows.

    Raises:
        ValueError: for what is neither a file nor such a name, with the nearest.

    Example:

    >>> find_config("recipes:ade20k-resnet101-isa")
    '.../experiments/configs/recipes.py:ade20k-resnet101-isa'
    """
    name, *rest = given.split(":", 1)
    path = Path(name)
    if path.is_file():
        return given
    if path.parent not in (Path(), Path("experiments/configs")) or path.suffix not in ("", ".py"):
        return given  # a path, and reading it says what is wrong
    if path.stem not in _configs():
        raise ValueError(unknown("config", name, _configs()))
    return ":".join([str(CONFIGS / f"{path.stem}.py"), *rest])


def _configs():
    """The names of the configs that come with the experiments."""
    return sorted(file.stem for file in CONFIGS.glob("[!_]*.py"))


def run(main):
    """`app.run(main)` that answers a wrong argument with a line instead of a traceback."""

    def parse(argv):
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError) as error:
            # What config_flags lets through: a key that is not there, ...
            sys.exit(f"error: {_no_key(message(error), argv)}")
        except (TypeError, OSError) as error:
            # ... a value of another type, a file that cannot be read.
            sys.exit(f"error: {message(error)}")

    def guarded(argv):
        # TensorFlow reports every step of an export at INFO.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        if argv[1:]:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        try:
            main(argv)
        except training.Interrupted as stop:
            try:
                print(stop, flush=True)
            except OSError:  # who read it has ended by the same Ctrl-C, as `tee` does
                sys.stdout = None  # Python would try again at its end, and exit with 120
            sys.exit(stop.exit_code)
        except Exception as error:
            if flags.FLAGS.traceback or (line := line_of(error)) is None:
                raise
            sys.exit(f"error: {line}\n(--traceback shows where)")

    flags.DEFINE_bool("traceback", False, "Show where an error was raised.")
    app.run(guarded, flags_parser=parse)


def line_of(error):
    """What is told of an error in place of a traceback; `None` of one that nobody expects."""
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, FloatingPointError)):
        return message(error)
    return runtime.short_of_memory(error)


def _no_key(said, argv):
    """What is said of a flag --config.KEY whose key is not there, with the flag."""
    names = [text.split("=", 1)[0] for text in argv if text.startswith("--config.")]
    keys = ((name, name.split(".")[1:]) for name in names)
    flag = next((name for name, of in keys if any(f"'{key}'" in said for key in of)), None)
    if flag is None:
        return said
    whole, _, key = flag.rpartition(".")
    if whole.endswith("options") and f"'{key}'" in said:
        return f"{flag}: what is not there yet is given as {whole}='{{\"{key}\": ...}}'"
    return f"{flag}: the config has no key {said}"


def message(error):
    """What an error says, without the quotation marks that a KeyError puts around it."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def make_run(workdir, config, strategy=None):
    """The `training.Run` of an experiment: only what is named here may change as it goes on."""
    may_change = (
        "data.data_dir",
        "features.folder",
        "train.steps",
        "train.checkpoint_every",
        "test",
    )
    return training.Run(workdir, json.loads(config.to_json()), may_change, strategy)


def prepare_workdir(workdir, config):
    """Makes the work directory of an experiment, or checks that it is this one's and free."""
    with make_run(workdir, config) as run:
        return run.workdir


def for_replicas(config, replicas):
    """The config of a training on so many replicas, by two rules that it states itself.

    * `data.replica_batch_size`, where it is set: `data.batch_size` is that for each replica.
    * `train.reference_batch`, where it is set: the rate is the batch's that makes an update, in
      proportion; `train.learning_rate` is multiplied by batch_size * accumulate / reference_batch.

    Steps stay as they are: a batch of twice the size sees twice the images.

    Args:
        config: of the experiment; it is not changed.
        replicas: int, of the strategy.

    Returns:
        The config with what follows from them; given to this function again, it stays as it is.

    Raises:
        ValueError: for a size below 1.
    """
    config = config.copy_and_resolve_references()
    each, reference = config.data.replica_batch_size, config.train.reference_batch
    for name, value in (("data.replica_batch_size", each), ("train.reference_batch", reference)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if each is not None:
        config.data.batch_size = each * replicas
    if reference is not None:
        batch = config.data.batch_size * config.train.accumulate
        config.train.learning_rate *= batch / reference
        config.train.reference_batch = batch
    return config


def tell_scaling(given, config):
    """Prints what `for_replicas` made of a config."""
    one, other = given.data.batch_size, config.data.batch_size
    if one != other:
        print(f"data.batch_size={other}: {config.data.replica_batch_size} of each replica")
    one, other = given.train.learning_rate, config.train.learning_rate
    if one != other:
        print(
            f"train.learning_rate={other:g}: {one:g}, which is for {given.train.reference_batch} "
            f"images, for the {config.train.reference_batch} of an update"
        )


def check_strategy(config, strategy):
    """Raises ValueError for what a config asks and a strategy cannot do."""
    replicas = strategy.num_replicas_in_sync
    if config.data.batch_size % replicas:
        raise ValueError(
            f"data.batch_size={config.data.batch_size} is over all replicas, and there are "
            f"{replicas}: choose a multiple of {replicas}"
        )
    if config.train.jit_compile and replicas > 1:
        raise ValueError(
            f"train.jit_compile=True compiles the whole step, which holds variables of {replicas} "
            "devices, and XLA compiles for one; use one device, or compile the attention alone: "
            "--config.model.context_options='{\"jit_compile\": True}'"
        )


def check_splits(config, dataset):
    """Raises ValueError for a split that is not there, or empty: now, not after hours of training.

    Args:
        config: of the experiment.
        dataset: its dataset.
    """
    for key in ("train_split", "val_split"):
        if not dataset.size(config.data[key]):
            raise ValueError(f"config.data.{key}={config.data[key]!r} has no examples")
    batch_size = config.data.get("val_batch_size", 1)
    if batch_size < 1:
        raise ValueError(f"config.data.val_batch_size must be at least 1, got {batch_size}")


def make_optimizer(config, **options):
    """The optimizer of an experiment; `options` are further ones of `training.make_optimizer`.

    Raises:
        ValueError: for a training of fewer batches than its weights are changed by once.
    """
    c = config.train
    if c.accumulate < 1:
        raise ValueError(f"config.train.accumulate must be at least 1, got {c.accumulate}")
    if c.steps < c.accumulate:
        raise ValueError(
            f"config.train.steps={c.steps} must be at least config.train.accumulate="
            f"{c.accumulate}, or the weights are never changed"
        )
    if "schedule" in c:  # which configs of segmentation have not: theirs is the poly schedule
        options |= {
            "schedule": c.schedule,
            "boundaries": [step // c.accumulate for step in c.boundaries],
            "factor": c.decay_factor,
            "warmup_factor": c.warmup_factor,
        }
    return training.make_optimizer(
        c.optimizer,
        c.learning_rate,
        c.steps // c.accumulate,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        power=c.power,
        end_learning_rate=c.end_learning_rate,
        warmup_steps=c.warmup_steps // c.accumulate,
        clip_norm=c.clip_norm,
        ema=c.ema,
        accumulate=c.accumulate,
        loss_scale=config.model.dtype == "mixed_float16",
        decay_spares=c.decay_spares,
        **options,
    )


def batch_files(config, dataset, step):
    """The names of the examples in the training batch of a step."""
    c = config.data
    return data.batch_examples(dataset, c.train_split, c.batch_size, step, seed=config.seed)


def once_a_model(make):
    """A function of a model that calls `make` the first time, and gives the same from then on."""
    made = {}

    def of(model):
        if id(model) not in made:
            made[id(model)] = make(model)
        return made[id(model)]

    return of


def spread(size, count=None):
    """Positions of `count` examples that are spread over a split of `size`; `None`: all.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    if count is None or count >= size:
        return list(range(size))
    return [i * size // count for i in range(count)]


def shown(score):
    """A score as it is printed; `None` of what does not occur."""
    return "absent" if score is None else f"{score:.4f}"


def draw_curves(run):
    """Writes curves.png into a run's workdir, where matplotlib is installed."""
    if not run.chief:
        return
    try:
        figure = visualize.curves(training.read_log(run.workdir / training.LOG))
    except ImportError:
        return
    with files.replacing(run.workdir / "curves.png") as path:
        figure.savefig(path, dpi=120)


def tell(config, workdir, best, arguments):
    """Prints what a training has come to, and the commands that go on with it."""
    workdir = Path(workdir)
    given = [a for a in arguments if a.startswith("--config")]
    print(f"best: {json.dumps(best)}, the model in {workdir / training.BEST}")
    if (workdir / "curves.png").exists():
        print(f"curves: {workdir / 'curves.png'}")
    evaluate = ["python", "-m", "experiments.evaluate", *given, f"--workdir={workdir}"]
    # The format that needs to know no size of images.
    export = ["python", "-m", "tools.export", f"--model={workdir / training.BEST}"]
    export += ["--format=saved_model"]
    print(command.spell(f"to evaluate: {shlex.join(evaluate)}"))
    print(command.spell(f"to export:   {shlex.join(export)}"))
