"""Preparing a data set once, from the archives of its publisher."""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from isa_tf import files
from isa_tf.data.base import DataError
from isa_tf.data.catalogue import builder
from isa_tf.hints import StrPath


def prepare(
    name: str,
    manual_dir: StrPath,
    data_dir: StrPath,
    check_sizes: bool = True,
    num_threads: int | None = None,
    progress: Callable[[str, int, int], object] | None = None,
    beam_options: Sequence[str] | None = None,
) -> Path:
    """Prepares a data set: shards of records that `isa_tf.data.create(name, data_dir)` reads.

    What is being prepared is complete at the end or not there: a run that was killed leaves
    a folder that is not taken for a data set, and that the next run removes. A data set that has
    been prepared already is left as it is.

    Args:
        name: str, a data set that has a builder, see `list_builders`.
        manual_dir: path of the folder where the publisher's archives lie, or what is unpacked of
            them.
        data_dir: path of the folder of all prepared data sets.
        check_sizes: bool, whether splits must have their official sizes; `False` for a part of a
            data set. Defaults to `True`.
        num_threads: int, that read and encode at once. Defaults to the number of cores.
        progress: function of (split, number of examples made, of all). Defaults to `None`.
        beam_options: list of str, options of an Apache Beam pipeline that makes the examples, such
            as `["--runner=DirectRunner"]`, empty for those of Beam. `None` for no Beam. Defaults
            to `None`.

    Returns:
        Path of the prepared folder.

    Raises:
        ValueError: for a name without a builder.
        DataError: for an archive that is missing, incomplete or damaged, naming it and where it is
            to be had; a label that the data set does not have; a split of another size.
        OSError: where `data_dir` cannot be written to; nothing is left there then.

    Example:

    >>> folder = isa_tf.data.prepare("camvid", "camvid", "new_data", check_sizes=False)
    >>> isa_tf.data.create("camvid", "new_data").size("train")
    4

    Library: https://www.tensorflow.org/datasets
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds  # takes a second

    manual_dir, data_dir = Path(manual_dir), Path(data_dir)
    cls = builder(name)
    made = cls(
        data_dir=data_dir,
        config=cls.config_of(manual_dir),
        check_sizes=check_sizes,
        num_threads=num_threads,
        progress=progress,
        use_beam=beam_options is not None,
    )
    folder = Path(made.data_dir)
    if folder.exists():
        return folder
    if not manual_dir.is_dir():
        raise DataError(manual_dir, "no such folder; it is where the archives lie")
    if not any(manual_dir.iterdir()):
        raise DataError(manual_dir, f"an empty folder; {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(folder.parent / "prepare.lock"):
        for left in folder.parent.glob("incomplete.*"):
            shutil.rmtree(left)
        settings = tfds.download.DownloadConfig(
            manual_dir=str(manual_dir), compute_stats=tfds.download.ComputeStatsMode.SKIP
        )
        if beam_options is not None:
            from apache_beam.options.pipeline_options import PipelineOptions

            settings.beam_options = PipelineOptions(beam_options)
        tfds.disable_progress_bar()  # which has no idea of the totals
        try:
            with contextlib.redirect_stdout(None):
                made.download_and_prepare(download_config=settings, download_dir=str(folder.parent))
        except Exception as error:
            # How TensorFlow says that a file cannot be written, and tensorflow-datasets that.
            if any(isinstance(e, tf.errors.OpError) for e in (error, error.__cause__)):
                raise OSError(None, f"could not be prepared ({error})", str(folder)) from error
            raise
        finally:
            tfds.enable_progress_bar()
            with contextlib.suppress(OSError):
                (folder.parent / "extracted").rmdir()
            for left in folder.parent.glob("incomplete.*"):
                shutil.rmtree(left, ignore_errors=True)
    return folder
