"""The battery of a format of model files."""

import contextlib
import functools
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from isa_tf import formats
from isa_tf.files import size
from isa_tf.inference import Protocol, contract_of
from isa_tf.testing.battery import Battery
from isa_tf.testing.models import blotches, decisions_of, small_segmenter, trained_segmenter

SIZE = (66, 74)  # of formats with one size
# A map of 23x30, which 8 does not divide; one of 5x7, smaller than 8.
SIZES = ((2, 90, 118), (1, 64, 64), (3, 20, 26), (1, 1, 1))


class FormatBattery(Battery):
    """What holds for every format of segmentation models, of whatever kind its files are.

    What is written is found, loaded, decides as the model, tells its classes, is verified; written
    whole or not at all; and what is damaged is told.

    Args:
        format: name of a registered format, see `isa_tf.formats.register`.
        options: dict of what its `export` needs besides model and path. Defaults to `None`, for
            nothing, or for an `image_size` that it needs, `size`.
        model: `keras.Model` that is written; its classes should be told apart clearly. Defaults to
            `None`, for `trained_segmenter()`, whose training takes seconds.
        size: (height, width) of the images. Defaults to (66, 74).
        score_tolerance: float, how much scores may differ. Defaults to 1e-4.

    Example:

    >>> from isa_tf.testing import FormatBattery
    >>> FormatBattery("keras", model=model).run("found", "contract")
    """

    def __init__(
        self,
        format: str,
        options: dict[str, Any] | None = None,
        model: keras.Model | None = None,
        size: tuple[int, int] = SIZE,
        score_tolerance: float = 1e-4,
    ) -> None:
        self.format = formats.create(format)
        self.subject = f"format {format!r}"
        if options is None:
            options = {"image_size": size} if self.format.options.get("image_size") else {}
        self.options, self.size, self.score_tolerance = options, size, score_tolerance
        self._model = model
        self._folder = tempfile.TemporaryDirectory()

    @functools.cached_property
    def model(self) -> keras.Model:
        """The model that is written."""
        return trained_segmenter(self.size) if self._model is None else self._model

    @functools.cached_property
    def path(self) -> Path:
        """The path of its file, which is written when it is first asked for."""
        path = Path(self._folder.name) / "new" / self.format.file_name
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            given = self.format.export(self.model, path, **self.options)
        self.expect(given == path, f"export returns {given!r}, not {path!r}")
        self.expect(not said.getvalue(), f"export prints {said.getvalue()[:80]!r}")
        there = os.listdir(path.parent)
        self.expect(there == [path.name], f"export leaves {there}, where {path.name} is asked for")
        return path

    def check_written(self) -> None:
        """`export` makes the folders above, returns the path, says nothing, leaves nothing else."""
        self.expect(size(self.path) > 0, "what is written is empty")

    def check_found(self) -> None:
        """What is written is known to be of the format."""
        found = formats.find(self.path).name
        self.expect(found == self.format.name, f"its files are taken for those of {found!r}")

    def check_decisions(self) -> None:
        """Class ids and scores are the model's, the same alone and in a batch."""
        images = blotches(2, *self.size)
        predictor = formats.load_predictor(self.path, num_threads=1, protocol=Protocol())
        result = predictor(images)
        dtypes = tuple(part.dtype.name for part in result)
        self.expect(dtypes == ("uint8", "float32"), f"class ids and scores are {dtypes}")
        self._agree(result, images)
        # Answers stay what they are when the next image comes.
        before = [part.copy() for part in result]
        for i, image in enumerate(images):
            difference = np.abs(predictor(image)[1] / before[1][i] - 1).max()
            self.expect(difference < 1e-4, f"scores of an image alone differ by {difference:.2g}")
        for part, old in zip(result, before, strict=True):
            self.expect_equal(part, old, "an answer, after the next image came,")

    def check_sizes(self) -> None:
        """Images of any size get class ids of their own size."""
        predictor = formats.load_predictor(self.path, protocol=Protocol())
        fixed = self.format.options.get("image_size", False)  # needed, and not to warm up with
        told = self.size if fixed else None
        self.expect(
            predictor.image_size == told,
            f"its predictor's image_size is {predictor.image_size}, not {told}",
        )
        for shape in SIZES:
            images = blotches(*shape)
            result = predictor(images)
            shapes = tuple(part.shape for part in result)
            self.expect(shapes == (shape, shape), f"of images {shape} it makes {shapes}")
            if not fixed and shape[1] > 1:
                self._agree(result, images)

    def _agree(self, result, images):
        (class_id, score), (expected, expected_score) = result, decisions_of(self.model, images)
        kinds = len(np.unique(expected))
        self.expect(kinds > 2, f"the model finds {kinds} classes, which proves little")
        agreement = (class_id == expected).mean()
        least = self.format.least_agreement
        self.expect(agreement >= least, f"{agreement:.3%} of the decisions are the model's")
        difference = np.abs(score - expected_score).max()
        self.expect(difference <= self.score_tolerance, f"scores differ by {difference:.2g}")

    def check_contract(self) -> None:
        """Classes and colours are in the file; a protocol is followed, or refused."""
        predictor, contract = formats.load_predictor(self.path), contract_of(self.model)
        for name in ("class_names", "palette", "num_classes"):
            found, expected = getattr(predictor, name), getattr(contract, name)
            self.expect(found == expected, f"its {name} are {found}, the model's {expected}")
        protocol = Protocol(flip=True)
        try:
            told = formats.load_predictor(self.path, protocol=protocol).protocol
        except ValueError:
            return
        self.expect(told == protocol, f"takes {protocol}, and predicts by {told}")

    def check_verified(self) -> None:
        """`verify` tells what is the model's file from another's."""
        found = self.format.verify(self.path, self.model, blotches(1, *self.size))
        least = self.format.least_agreement
        self.expect(found.agreement >= least, f"verified with an agreement of {found.agreement}")
        pixels = self.size[0] * self.size[1]
        self.expect(found.decisions == pixels, f"{found.decisions} decisions of {pixels} pixels")
        self.expect(found.kinds > 2, f"{found.kinds} classes prove little")
        self.expect(found.seconds > 0, "a prediction in no time")
        bytes = size(self.path)
        self.expect(found.bytes == bytes, f"verified as of {found.bytes} bytes, it has {bytes}")
        other = self.format.verify(self.path, small_segmenter(), blotches(1, *self.size)).agreement
        self.expect(other < 0.8, f"another model's decisions are these by {other:.1%}")

    def check_refusals(self) -> None:
        """No model, and a path of another kind, are a ValueError, and leave nothing."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.format.file_name
            self._refuses("what is no keras.Model", lambda x: x, path)
            if self.format.suffix:
                self._refuses("a path of another suffix", self.model, path.with_suffix(".other"))
            left = os.listdir(folder)
            self.expect(not left, f"what was refused leaves {left}")

    def _refuses(self, what, model, path):
        try:
            self.format.export(model, path, **self.options)
        except ValueError:
            return
        except Exception as error:
            message = f"{self.subject}: {what} raises {error!r}, no ValueError"
            raise AssertionError(message) from error
        self.expect(False, f"{what} is not refused (ValueError)")

    def check_damage(self) -> None:
        """A file that was cut off is a ValueError that names its path."""
        with tempfile.TemporaryDirectory() as folder:
            broken = Path(folder) / self.format.file_name
            if self.path.is_file():
                broken.write_bytes(self.path.read_bytes()[:200])
            else:
                broken.mkdir()
                for file in self.path.iterdir():
                    if file.is_file():
                        (broken / file.name).write_bytes(file.read_bytes()[:200])
            try:
                formats.load_predictor(broken)
            except ValueError as error:
                named = f"{broken}: " in str(error)
                self.expect(named, f"of a damaged file it is not told which: {error}")
                return
            except Exception as error:
                message = f"{self.subject}: a damaged file raises {error!r}, no ValueError"
                raise AssertionError(message) from error
            self.expect(False, "a damaged file is loaded as if nothing were wrong")
