"""Trains the variants of one choice with equal budgets, and tables and draws their scores.

    python -m experiments.ablate --study=order --workdir=runs/ablation --seeds=0,1,2

A study varies one thing and leaves all else as the config has it: "partition", "order" and "depth"
of the interlaced module (`config.model.context_options`), or the "context" module itself
(`config.model.context`), as Huang et al. (arXiv 1907.12273) do; in the latter `context_options` are
those of the config's own module, and the others have their defaults but for arguments behind the
name, as in isa_plus:num_heads=8. "frozen" is "context" on the
kept maps of a frozen backbone (experiments/configs/frozen.py), beside a control: 1x1 convolutions
with as many parameters as the config's own module; "released" goes on from there with the whole
network (experiments/configs/released.py). "variant" is of how the module begins, "levels"
of how many ranges it has, with projections of each or shared by all. --variants=NAME,NAME chooses
other variants than the study's own: a partition is N, HEIGHTxWIDTH or "auto", a depth N. Every
--config.KEY=VALUE of training works here too.

Each run is a folder WORKDIR/STUDY/VARIANT/seedN, as experiments.train leaves it. After every run
results.md, .csv, .png and .svg in WORKDIR/STUDY hold what is known of the variants and seeds asked
for; where the others are to be compared with one of them, their differences under the same seeds
too, with a 95 % interval. losses.png and .svg are of the training losses from the first steps on.
Started again, the study goes on from where it was.
"""

import csv
import itertools
import json
import multiprocessing
import os
import re
import shlex
import signal
import statistics
import sys
import threading
from importlib.metadata import version
from pathlib import Path

from absl import flags

from experiments import setup, study_figures, tasks
from experiments.evaluate import evaluate
from experiments.train import train
from isa_tf import files, formats, ops, training
from isa_tf.layers import create_context, list_contexts
from isa_tf.layers.pointwise import learnt_parameters
from isa_tf.layers.self_attention import ORDERS
from isa_tf.names import unknown
from tools import command, tables, typed

# A study's name is what it varies: `config.model.context`, or an argument of the module.
STUDIES = {
    "partition": ("4", "8", "16", "auto", "4x8", "8x4", "8x16", "16x8"),
    "order": ("long", "short", "long_short", "short_long"),
    "depth": ("1", "2", "3"),
    "context": ("none", "ppm", "aspp", "rcca", "self_attention", "isa", "isa_plus"),
    "frozen": (
        *("none", "pointwise", "local", "ppm", "aspp"),
        *("rcca", "self_attention", "nonlocal", "isa", "isa_plus"),
    ),
}
_FROZEN = ("frozen", "released")  # with the control, and where the latter begin
_OF_CONTEXTS = ("context", *_FROZEN)
# Studies of several arguments of the interlaced module: what a variant's name stands for.
FORMS = {
    "variant": {
        "published": {},
        "residual": {"residual": True},
        "zero_context": {"zero_context": True},
        "query_scale": {"query_scale": 4.0},
        "orthogonal": {"key_initializer": "orthogonal"},
        "position_bias": {"position_bias": True},
        "num_heads": {"num_heads": 4},
        "context_of_the_map": {"context_norm": "map"},
        "context_as_it_is": {"context_norm": None},
        "bias+zero": {"position_bias": True, "zero_context": True},
        "bias+residual": {"position_bias": True, "residual": True},
    },
    "levels": {
        "2": {"partition": "auto"},
        "3": {"partition": "auto", "levels": 3},
        "2-shared": {"partition": "auto", "share_projections": True},
        "3-shared": {"partition": "auto", "levels": 3, "share_projections": True},
    },
}
STUDIES |= {study: tuple(forms) for study, forms in FORMS.items()}
STUDIES["released"] = STUDIES["frozen"]
_CONTROLS = ("pointwise", "local")  # of as many parameters as the config's module
# The variant that a study's others are compared with.
_CONTROL = _CONTROLS[0]
AGAINST = {"context": "none", "variant": "published", "levels": "2"}
AGAINST |= dict.fromkeys(_FROZEN, _CONTROL)
RUN = "run.json"
# Behind a score's name in results.csv: the mean of its differences from that, and its interval.
DIFFERENCE = ("_difference", "_difference_low", "_difference_high")
# Of Student's distribution with 1, 2, ... degrees of freedom, 97.5 % lie below.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160),
    *(2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056),
    *(2.052, 2.048, 2.045, 2.042),
)


# === Variants ===


def read_variant(study, name):
    """What a variant's name stands for.

    "4x8" is the partition (4, 8), "isa:depth=2" the module and its arguments ("isa", {"depth": 2}).
    """
    words = {"partition": ["auto"], "order": list(ORDERS)}
    words |= dict.fromkeys(_OF_CONTEXTS, list_contexts()) | FORMS
    if study in _OF_CONTEXTS and name.split(":")[0] in words[study]:
        return typed.parse_module(name)
    if name in words.get(study, []):
        return name
    numbers = {"partition": r"[1-9]\d*(x[1-9]\d*)?", "depth": r"[1-9]\d*"}
    if study in numbers and re.fullmatch(numbers[study], name):
        value = tuple(int(side) for side in name.split("x"))
        return value if len(value) > 1 else value[0]
    known = (*STUDIES[study], "...") if study in numbers else list(words[study])
    raise ValueError(f"study {study!r}: {unknown('variant', name, known)}")


def default_variants(study, config):
    """The names of a study's own variants that this config and this package allow."""
    names = STUDIES[study]
    if study in _OF_CONTEXTS:
        return [name for name in names if name in list_contexts()]
    if study == "partition":
        height, width = tasks.of(config).map_size(config)

        def fits(name):
            sides = [int(side) for side in re.findall(r"\d+", name)]
            return not sides or (sides[0] <= height and sides[-1] <= width)

        return [name for name in names if fits(name)]
    return list(names)


def _begun(study, run_folder):
    """The model that a run of the frozen study has left, with which a released one begins."""
    if study is None:
        raise ValueError(
            'study "released" goes on from another: config.model.initial is to be the folder of '
            'a study "frozen"'
        )
    path = Path(study) / run_folder / training.BEST
    if not (path.parent / RUN).exists():
        raise ValueError(f"config.model.initial={study}: there is no finished run {path.parent}")
    return str(path)


def _exchange_context(config, module, control):
    """Gives a config another module; a control is as large as the config's own."""
    if module != config.model.context:
        options = _control_of(config) if control and module in _CONTROLS else {}
        config.model.context = module
        config.model.context_options = options


def _control_of(config):
    """Arguments of the control that has as many parameters as the config's own module."""
    c = config.model
    own = create_context(c.context, **c.context_options.to_dict())
    if own is None:  # as many as the interlaced module, then
        return {}
    return {"parameters": learnt_parameters(own, c.head_filters)}


# === One run ===


def run(config, folder):
    """Trains and scores one variant under one seed in `folder`."""
    train(config, folder, verbose=2)
    evaluate(config, folder)
    model = formats.load_model(folder / training.BEST)
    facts = {"parameters": model.count_params()}
    facts |= {package: version(package) for package in ("tensorflow", "keras")}
    # Written last: it says that the run is done.
    files.write_json(folder / RUN, facts, indent=2)


def run_apart(config, folder):
    """`run` in a process of its own, which gives all its memory back and can fail alone.

    It keeps its state and ends where this process is told to end, or is killed.

    Raises:
        ChildProcessError: where the process fails; what it had to say is on stderr.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_run_as_child, args=(config, folder)
    )
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        process.start()
        process.join()
    finally:
        if process.pid is not None:
            process.terminate()
            process.join()
        signal.signal(signal.SIGTERM, before)
    if process.exitcode:
        raise ChildProcessError(f"{folder}: the run ended with exit code {process.exitcode}")


def _run_as_child(config, folder):
    # Ctrl-C reaches both processes; the parent is the one to answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run(config, folder)
    except training.Interrupted as stop:
        sys.exit(stop.exit_code)


def _end_with_parent():
    """So that no training goes on that nobody knows of, and its folder is free."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def check_run(config, folder):
    """Raises ValueError where a run's folder belongs to another config, naming what differs."""
    # What of it is damaged, the run itself tells.
    if kept := files.read_json(folder / training.CONFIG):
        # Training on, unlike a study, may change its length.
        steps = kept["train"]["steps"]
        if steps != config.train.steps:
            raise ValueError(
                f"{folder} is of another study, with train.steps={steps} in place of "
                f"{config.train.steps}; choose another workdir"
            )
    if folder.exists():
        setup.prepare_workdir(folder, setup.for_replicas(config, 1))


def read_run(config, folder):
    """What is known of a finished run: a dict of its scores and facts; `None` if unfinished.

    Nor is a run finished of which they are damaged: done again, it is not trained, but scored.
    """
    task = tasks.of(config)
    result, metrics = (files.read_json(folder / name) for name in (RUN, "metrics.json"))
    if result is None or metrics is None:
        return None
    # What changes places in a mirror, the data set may tell.
    dataset = task.make_dataset(config) if config.test.get("flip") else None
    asked = [config.data.val_split, task.make_protocol(config, dataset).to_dict(), training.BEST]
    if [metrics["split"], metrics["protocol"], Path(metrics["model"]).name] != asked:
        return None  # scored in another way since: to be scored again
    result["seconds"] = training.read_log(folder / training.LOG)[-1]["seconds"]
    result["images"] = metrics["images"]
    told = training.read_scalars(folder / training.TENSORBOARD, "training/loss")
    last = [loss for step, loss in told.items() if step > config.train.steps * 5 / 6]
    result |= {"losses": told, "train_loss": statistics.fmean(last) if last else None}
    return result | {name: metrics[name] for name in task.SCORES if metrics.get(name) is not None}


# === The study ===


class Study:
    """The runs of a study and what they have given so far.

    Args:
        name: str, one of `STUDIES`.
        config: of the experiment that all variants share.
        workdir: folder of all studies; the runs lie in `workdir/name/variant/seedN`.
        seeds: ints. Defaults to (0,).
        variants: names; `None` for the study's own, as far as they fit. Defaults to `None`.
        command: str, by which the study was started, for the table. Defaults to none.

    Raises:
        ValueError: for an unknown study or variant, for seeds that are no distinct natural numbers,
            for a config without the interlaced module where the study is about it, or for a run's
            folder that belongs to something else.

    Example:

    >>> study = Study("order", synthetic.get_config(), "runs/ablation", seeds=(0, 1))
    >>> study.go()
    """

    def __init__(self, name, config, workdir, seeds=(0,), variants=None, command=""):
        if name not in STUDIES:
            raise ValueError(unknown("study", name, STUDIES))
        if name not in _OF_CONTEXTS and config.model.context != "isa":
            raise ValueError(
                f'study {name!r} varies the context module "isa", and config.model.context is '
                f"{config.model.context!r}"
            )
        if name == "frozen" and not config.features.folder:
            raise ValueError('study "frozen" is of kept maps: it needs config.features.folder')
        natural = all(isinstance(seed, int) and seed >= 0 for seed in seeds)
        if not seeds or not natural or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be distinct natural numbers, got {seeds!r}")
        self.name, self.config, self.seeds, self.command = name, config, list(seeds), command
        self.folder = Path(workdir) / name
        self.variants = list(dict.fromkeys(variants or default_variants(name, config)))
        values = {variant: read_variant(name, variant) for variant in self.variants}
        self.runs = {}
        # Seeds outermost, so that a study cut short has compared all variants under the first.
        for seed, variant in itertools.product(self.seeds, self.variants):
            config = self.config.copy_and_resolve_references()
            config.seed = seed
            if name in _OF_CONTEXTS:
                module, options = values[variant]
                _exchange_context(config, module, control=name in _FROZEN)
            else:
                options = FORMS[name][variant] if name in FORMS else {name: values[variant]}
            with config.ignore_type():  # a pair where there was a number
                config.model.context_options.update(options)
            run_folder = f"{variant}/seed{seed}"
            if name == "released":
                config.model.initial = _begun(config.model.initial, run_folder)
            self.runs[variant, seed] = config, self.folder / run_folder
        self.check_folders()
        found = {key: read_run(*arguments) for key, arguments in self.runs.items()}
        self.results = {key: result for key, result in found.items() if result}

    @property
    def heading(self):
        """The first line of results.md."""
        return f"# Ablation: {self.name}"

    def check_folders(self):
        """Raises ValueError, before anything is written, where a folder is not this study's."""
        table = self.folder / "results.md"
        if self.folder.exists() and any(self.folder.iterdir()):
            if not table.exists() or table.read_text().split("\n")[0] != self.heading:
                raise ValueError(
                    f"{self.folder} is not empty and no study's; choose another workdir"
                )
        for config, folder in self.runs.values():
            check_run(config, folder)

    def go(self, run=run_apart):
        """Does the runs that are missing, one after the other; writes the table after each.

        Args:
            run: function of a config and a folder, `run_apart` or, in this process, `run`.
        """
        self.write()
        for number, (key, arguments) in enumerate(self.runs.items(), start=1):
            heading = f"[{number}/{len(self.runs)}] {self.name}={key[0]}, seed {key[1]}"
            before = key in self.results
            if not before:
                print(f"\n=== {heading}: {arguments[1]}", flush=True)
                run(*arguments)
                self.results[key] = read_run(*arguments)
                self.write()
            result = self.results[key]
            scores = [f"{label} {result[s]:.4f}" for s, label in self.labels.items() if s in result]
            seconds = f"{result['seconds']:.0f} s" + (", done before" if before else "")
            print(f"{heading}: {', '.join(scores)}, {seconds}", flush=True)

    @property
    def labels(self):
        """The names of all scores that the task has, with what a table calls them."""
        return tasks.of(self.config).SCORES

    @property
    def scores(self):
        """The names of the scores that there are."""
        found = [s for s in self.labels if any(s in result for result in self.results.values())]
        return found or [tasks.of(self.config).MONITOR]

    def values(self, variant, what):
        """A value of each seed, `None` where there is none yet."""
        return [self.results.get((variant, seed), {}).get(what) for seed in self.seeds]

    def write(self):
        """Writes results.md, .csv, .png and .svg, and losses.png and .svg."""
        # First of all, so that a missing matplotlib is known before the first training.
        figures = {"results": study_figures.scores(self), "losses": study_figures.losses(self)}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "results"
        with files.replacing(path.with_suffix(".md")) as new:
            new.write_text(self.table(), encoding="utf-8")
        with (
            files.replacing(path.with_suffix(".csv")) as new,
            open(new, "w", newline="", encoding="utf-8") as file,
        ):
            rows = self.rows()
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for name, figure in figures.items():
            for ending in (".png", ".svg"):
                study_figures.save(self.folder / (name + ending), figure)

    @property
    def against(self):
        """The variant that the others are compared with; `None` where it is none of the study's."""
        other = AGAINST.get(self.name)
        return other if other in self.variants else None

    def differences(self, variant, what):
        """(mean, low, high) of a value's differences from the variant that is compared with.

        Under the same seeds, with the 95 % interval of the mean; each `None` where it is not
        defined. `None` where there is nothing to compare with.
        """
        if self.against in (None, variant):
            return None
        pairs = zip(self.values(variant, what), self.values(self.against, what), strict=True)
        return interval([a - b for a, b in pairs if None not in (a, b)])

    def rows(self):
        """A dict for each variant: mean, sample standard deviation and value of each seed."""
        rows = []
        for variant in self.variants:
            parameters = [p for p in self.values(variant, "parameters") if p is not None]
            row = {self.name: variant, "parameters": parameters[0] if parameters else None}
            for what in (*self.scores, "train_loss", "seconds"):
                values = self.values(variant, what)
                row[f"{what}_mean"], row[f"{what}_sd"] = mean_and_spread(values)
                row |= {f"{what}_seed{s}": v for s, v in zip(self.seeds, values, strict=True)}
            if self.against:
                found = self.differences(variant, self.scores[0]) or (None, None, None)
                names = (self.scores[0] + part for part in DIFFERENCE)
                row |= dict(zip(names, found, strict=True))
            rows.append(row)
        return rows

    def table(self):
        """The Markdown of the results and of how they came about."""
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        columns = [self.name, "parameters"]
        columns += [c for score in self.scores for c in (self.labels[score], f"of {seeds}")]
        if self.against:
            columns.append(f"{self.labels[self.scores[0]]} against {self.against}")
        columns += ["training loss at the end", "training (s)"]
        lines = [self.heading, "", f"**{self.progress()}**", ""]
        rows = []
        for row in self.rows():
            variant, parameters = row[self.name], row["parameters"]
            cells = [variant, "–" if parameters is None else f"{parameters:,}"]
            for score in self.scores:
                cells.append(_plus_minus(row[f"{score}_mean"], row[f"{score}_sd"], 4))
                cells.append(", ".join(_fixed(v, 4) for v in self.values(variant, score)))
            if self.against:
                cells.append(_difference(self.differences(variant, self.scores[0])))
            cells.append(_plus_minus(row["train_loss_mean"], row["train_loss_sd"], 4))
            cells.append(_plus_minus(row["seconds_mean"], row["seconds_sd"], 0))
            rows.append(cells)
        lines.append(tables.markdown(columns, rows))
        lines += ["", *(f"* {line}" for line in self.notes()), "", "![scores](results.png)"]
        lines += ["![training losses](losses.png)", ""]
        return "\n".join(lines)

    def progress(self):
        """How much of the study is done, in one line."""
        done, planned = len(self.results), len(self.runs)
        if done == planned:
            return f"All {planned} runs are done."
        return f"Not complete: {done} of {planned} runs are done."

    def notes(self):
        """What the figures are and where they come from, line by line."""
        config, data = self.config, self.config.data
        if len(self.seeds) > 1:
            yield "Mean ± sample standard deviation over the seeds done, then each seed's own."
        if self.against:
            yield (
                f"Against {self.against}: the mean of the differences under the same seeds, "
                "and its 95 % interval by Student's distribution."
            )
        every = config.train.validate_every
        which = f"of the best model on them, validated every {every} steps"
        if every >= config.train.steps:
            which = "of the last step"
        protocol = tasks.of(config).make_protocol(config)
        given, usual = protocol.to_dict(), type(protocol)().to_dict()
        protocol = [f"{key}={value}" for key, value in given.items() if value != usual[key]]
        protocol = ", ".join(protocol) or "each image once and whole"
        options = f" {json.dumps(data.options.to_dict())}" if data.options else ""
        images = next((f"{r['images']} images of " for r in self.results.values()), "")
        yield (
            f"Data: {data.name}{options}, trained on {data.train_split}, scored on "
            f"{images}{data.val_split}."
        )
        yield f"Scores: {which}; {protocol}."
        yield (
            f"Training: {config.train.steps} steps of {data.batch_size} "
            f"{tasks.of(config).EXAMPLES}, the same for all; its seconds include the validations."
        )
        yield (
            "The training loss at the end is the mean of the last sixth of the steps, of which "
            "TensorBoard is told every 50 at a time."
        )
        if "auto" in self.variants and self.name == "partition":
            size = tasks.of(config).map_size(config)
            chosen = "x".join(map(str, ops.best_partition(*size)))
            yield f'"auto" is {chosen} on the {size[0]}x{size[1]} map of a training crop.'
        for package, label in (("tensorflow", "TensorFlow"), ("keras", "Keras")):
            if found := sorted({result[package] for result in self.results.values()}):
                yield f"{label} {', '.join(found)}."
        if self.command:
            yield f"`{self.command}`"


def mean_and_spread(values):
    """Mean and sample standard deviation of what is not `None`; `None` where undefined."""
    values = [value for value in values if value is not None]
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def interval(values):
    """(mean, low, high): the mean and its 95 % interval; each `None` where it is not defined.

    Raises:
        ValueError: for more values than Student's distribution is known for here.
    """
    if len(values) > len(_STUDENT) + 1:
        raise ValueError(f"intervals are of at most {len(_STUDENT) + 1} values, got {len(values)}")
    mean, spread = mean_and_spread(values)
    if spread is None:
        return mean, None, None
    half = _STUDENT[len(values) - 2] * spread / len(values) ** 0.5
    return mean, mean - half, mean + half


def _difference(found):
    if found is None:
        return ""
    mean, low, high = found
    if mean is None:
        return "–"
    return f"{mean:+.4f}" + ("" if low is None else f" [{low:+.4f}, {high:+.4f}]")


def _fixed(value, digits):
    return "–" if value is None else f"{value:.{digits}f}"


def _plus_minus(mean, spread, digits):
    text = _fixed(mean, digits)
    return text if spread is None else f"{text} ± {_fixed(spread, digits)}"


def main(argv):
    del argv
    values = flags.FLAGS
    started = command.spell(f"python -m experiments.ablate {shlex.join(sys.argv[1:])}")
    try:
        seeds = [int(seed) for seed in values.seeds]
    except ValueError:
        raise ValueError(f"seeds must be numbers, got {', '.join(values.seeds)}") from None
    study = Study(
        values.study, values.config, values.workdir, seeds, values.variants or None, started
    )
    missing = [n for n in STUDIES[study.name] if n not in study.variants]
    if missing and not values.variants:
        print(f"left out, because unknown or too large here: {', '.join(missing)}")
    try:
        study.go()
    except KeyboardInterrupt:
        sys.exit(f"stopped: {study.progress()} See {study.folder}; started again, it goes on.")
    print(f"written: {study.folder}/results.md, .csv, .png, .svg")


if __name__ == "__main__":
    setup.define_config_flag("synthetic", "What variants share")
    flags.DEFINE_string("study", None, f"One of {', '.join(STUDIES)}.")
    flags.DEFINE_string("workdir", None, "Folder of the studies.")
    flags.DEFINE_list("seeds", ["0"], "Seeds, each variant is trained under each.")
    flags.DEFINE_list("variants", [], "Variants in place of the study's own.")
    flags.mark_flags_as_required(["study", "workdir"])
    setup.run(main)
