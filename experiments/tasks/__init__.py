"""What an experiment does, by its task: a module of each, of the same functions.

* `make_dataset`, `make_train_data`, `batch_files`: what it learns from.
* `make_model`, `part_to_train`, `phases`, `compile_model`: what learns, and how it is validated on
  the way; `map_size`: of the map that its context module reads.
* `make_protocol`, `score`, `headline`, `lines`, `make_sheet`, `make_report`,
  `write_predictions`: an evaluation.
* `MONITOR`, the score by which models are compared, `SCORES`, those that ablations table, and
  `EXAMPLES`, what a training reads.
"""

from experiments.tasks import instances, segmentation
from isa_tf.names import Registry

tasks = Registry("task")
tasks.register("segmentation", segmentation)
tasks.register("instance_segmentation", instances)


def of(config):
    """The module of an experiment's task: of segmentation, where its config names none.

    Raises:
        ValueError: for an unknown task, with the nearest that there are.
    """
    return tasks[config.get("task", "segmentation")]
