"""Goes on from damaged workdirs, and judges what comes of it."""

import collections
import json
import logging
import time
from pathlib import Path

import numpy as np

from experiments import setup
from experiments.faults.compared import as_log, differences, rows_differ, without_digest
from experiments.faults.damages import draw_damages
from experiments.faults.sources import contents, prepare
from experiments.tasks import segmentation
from experiments.train import train
from isa_tf import names, training


def torture_by_damages(workdir, seed, steps, each):
    """Damages copies of a workdir and goes on from them.

    Args:
        workdir: path of a folder for all.
        seed: int, of what is drawn.
        steps: int, of the training.
        each: int, how many cuts and flips each file gets.

    Returns:
        A list of sentences: what is not as it must be.
    """
    begin = time.monotonic()
    workdir = workdir / "damages"
    sources = prepare(workdir, steps)
    restorer = Restorer(sources)
    table, faults = {}, []
    damages = draw_damages(sources, seed, each)
    judged = [damage for damage in damages if damage.folder != "end"]
    for damage in judged:
        folder = sources.copy(damage.folder, workdir / "damaged")
        before = contents(folder)
        damage.act(folder)
        unchanged = contents(folder) == before
        outcome, why = restorer.judge(damage, folder, unchanged)
        if outcome == "fault":
            faults.append(f"{damage.file} {damage.kind}: {why}")
        counts = table.setdefault((damage.file, damage.kind), collections.Counter())
        counts[outcome] += 1
    print(f"{len(judged)} damages in {time.monotonic() - begin:.0f} s:")
    width = max(len(file) for file, _ in table)
    for (file, kind), counts in table.items():
        outcomes = ", ".join(f"{outcome} {n}" for outcome, n in sorted(counts.items()))
        print(f"  {file:{width}}  {kind:28}  {outcomes}")
    total = sum(table.values(), collections.Counter())
    print(", ".join(f"{outcome} {n}" for outcome, n in sorted(total.items())), flush=True)

    further = [damage for damage in damages if damage.goes_on]
    for damage in further:
        folder = sources.copy(damage.folder, workdir / "damaged")
        damage.act(folder)
        try:
            train(sources.config, folder, verbose=0)
        except Exception as error:
            faults.append(f"{damage.file} {damage.kind}: it does not go on ({error!r})")
            continue
        for path in folder.rglob("damaged-*"):  # as it should be
            path.unlink()
        found = differences(workdir / "end", folder)
        faults += [f"{damage.file} {damage.kind}, then to the end: {d}" for d in found]
        told = "differs" if found else "the same"
        print(f"{damage.file} {damage.kind}, then to the end: {told}", flush=True)
    return faults


class _Said(logging.Handler):
    """What the library logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


class Restorer:
    """Goes on from damaged folders, with one model for all, and judges what comes of it."""

    def __init__(self, sources):
        self.sources = sources
        self.strategy = training.make_strategy("one_device")
        self.dataset = segmentation.make_dataset(sources.config)
        self.model = segmentation.make_model(sources.config, self.dataset)
        last = segmentation.phases(sources.config)[-1]
        self.validation = segmentation.compile_model(self.model, sources.config, self.dataset, last)

    def restore(self, folder):
        """(run, or the error; what was warned): a run that has taken up the folder's state."""
        config, dataset = self.sources.config, self.dataset
        if self.model.optimizer.built:  # nothing of the last restoration may pass for this one's
            for variable in [*self.model.variables, *self.model.optimizer.variables]:
                variable.assign(np.full(variable.shape, 77, variable.dtype))
        said, logger = _Said(), logging.getLogger("isa_tf")
        logger.addHandler(said)
        try:
            with setup.make_run(folder, config, self.strategy) as run:
                # Up to a step that is past, so it restores and mends and does nothing more.
                run.fit(
                    self.model,
                    lambda step, context: segmentation.make_train_data(
                        config, dataset, step, context
                    ),
                    **self.validation,
                    steps=1,
                    validate_every=1,
                    verbose=0,
                )
            return run, said.texts
        except Exception as error:
            return error, said.texts
        finally:
            logger.removeHandler(said)

    def judge(self, damage, folder, unchanged):
        """(outcome, why): "recovered", "refused" or "harmless", or "fault" and the reason."""
        damaged = contents(folder)
        run, said = self.restore(folder)
        if isinstance(run, Exception):
            return self._judge_refusal(damage, run, folder, damaged)
        if wrong := self._wrong(run, folder, damage, damaged):
            return "fault", wrong
        named = any(damage.file in text and str(folder) in text for text in said)
        outcome = "recovered" if named else "harmless"
        if outcome not in damage.may_be:
            if outcome == "harmless" and (unchanged or self._means_the_same(damage, damaged)):
                return outcome, ""
            return (
                "fault",
                f"{outcome}, where it must be {' or '.join(damage.may_be)}; said: {said}",
            )
        return outcome, ""

    def _judge_refusal(self, damage, error, folder, damaged):
        text = setup.message(error) if isinstance(error, KeyError) else str(error)
        if not isinstance(error, ValueError | OSError | FloatingPointError):
            return "fault", f"{type(error).__name__}: {text[:300]}"
        if isinstance(error, UnicodeError):
            return "fault", f"{type(error).__name__} names no file: {text[:300]}"
        if "refused" not in damage.may_be:
            return "fault", f"refused: {text}"
        if damage.file.split("/")[0] not in text or str(folder) not in text:
            return "fault", f"the error names no {damage.file}: {text}"
        if not any(way in text for way in ("another workdir", "copy")):
            return "fault", f"the error tells no way out: {text}"
        if contents(folder) != damaged:
            return "fault", f"refused, though the folder has changed: {text}"
        return "refused", ""

    def _wrong(self, run, folder, damage, damaged):
        """What is wrong with the state that a run has taken up, in words, or `None`."""
        if run.step == 0:
            return "begun anew, silently"
        sources, newest = self.sources, max(self.sources.states)
        undamaged = (sources.folder / "halfway" / sources.newest).read_bytes()
        if run.step not in sources.states:
            return f"goes on from step {run.step}"
        if run.step != newest and damaged.get(sources.newest) == undamaged:
            return f"goes on from step {run.step}, though the checkpoint of {newest} is whole"
        facts, arrays = sources.states[run.step]
        # Of an epoch that has ended, metrics are not gone on with.
        metrics = {n: a for n, a in arrays.items() if n.startswith("metrics/")}
        if run._metrics.keys() != (metrics.keys() if facts["within_epoch"] else set()):
            return f"the metrics of step {run.step} are taken up though its epoch has ended, or not"
        run.restore_metrics()
        for name, variable in run._variables().items():
            if name in metrics and not facts["within_epoch"]:
                continue
            if training.read_variable(variable).tobytes() != arrays[name].tobytes():
                return f"{name} is not that of step {run.step}"
        if run.rows != facts["rows"] or run.train_logs != facts["train_logs"]:
            return f"the log is not that of step {run.step}"
        best_damaged = damage.file in (training.BEST, f"{training.BEST_SCORE}, {training.BEST}")
        if run.best != facts["best"] and not (run.best is None and best_damaged):
            return f"the best score is {run.best}, not {facts['best']}"
        if rows_differ(training.read_log(folder / training.LOG), as_log(facts["rows"])):
            return f"{training.LOG} was not mended"
        if run.best and training.best_score(folder) != without_digest(facts["best"]):
            # The best of a validation that will be done again, to the same end, may stay.
            later = json.loads(damaged[Path(training.BEST_SCORE)] or "null")
            if later != sources.states[newest][0]["best"] or later["step"] <= run.step:
                return f"{training.BEST_SCORE} was not mended"
        config = json.loads((folder / training.CONFIG).read_text())
        if config != json.loads(sources.config.to_json()):
            return f"{training.CONFIG} was not mended"
        return None

    def _means_the_same(self, damage, damaged):
        """Whether a file's contents mean what they meant, though their bytes are others."""
        content = damaged.get(Path(damage.file))
        if content is None:
            return False
        original = (self.sources.folder / "halfway" / damage.file).read_bytes()
        if damage.file == training.BEST_SCORE:
            return json.loads(content) == json.loads(original)
        if damage.file == training.CONFIG:  # what may be another is what the command says
            return (
                not set(names.differences(json.loads(content), json.loads(original)))
                - {
                    "train.steps",
                    "train.checkpoint_every",
                    "data.data_dir",
                }
                - {n for n, _ in names.flat(json.loads(original)) if n.startswith("test.")}
            )
        if damage.file == training.LOG:
            copy = self.sources.folder / "same.csv"
            copy.write_bytes(content)
            facts, _ = self.sources.states[max(self.sources.states)]
            try:
                return training.read_log(copy) == as_log(facts["rows"])
            except ValueError:
                return False
        return False
