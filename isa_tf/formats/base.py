"""What every format is: a kind of file that models are written to and predicted from."""

import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np

from isa_tf import files
from isa_tf.compat import flatten_layers
from isa_tf.hints import StrPath
from isa_tf.inference import InstancePredictor, Predictor, contract_of, predictor_of_model
from isa_tf.inference.protocol import ProtocolBase

SIGNATURE = "serving_default"

_Answer = TypeVar("_Answer")


class Verification(NamedTuple):
    """How far a written model does what the Keras model does.

    Attributes:
        agreement: float, the share of decisions that are the same: on pixels, on instances, or
            whatever `decides` of the model's contract says; 0 where a score is not finite.
        decisions: int, how many there are.
        kinds: int, how many classes there are in them; a single one proves little, none nothing.
        score_difference: float, the largest.
        bytes: int, the size of what was written.
        seconds: float, what a prediction of the images takes, the shortest of three.
    """

    agreement: float
    decisions: int
    kinds: int
    score_difference: float
    bytes: int
    seconds: float


class Format:
    """A kind of file for models: a subclass names it, and writes, knows and loads its files.

    A format knows nothing of what a model is for: what is written beside the model, what it answers
    and what predicts with it is told by its contract, see `isa_tf.inference.contract_of`.

    Attributes:
        name: str, by which `isa_tf.formats.create` knows it.
        suffix: str, that its files end in, such as ".keras"; "" for a folder.
        by_suffix: bool, whether a path of this suffix asks for this format; False for one that has
            its suffix from another and is asked for by name. Defaults to `True`.
        least_agreement: float, the share of decisions that are to be the model's, see
            `Verification`, and `least_for`. Defaults to 0.999.

    Example:

    >>> @isa_tf.formats.register
    ... class Architecture(Format):
    ...     name, suffix = "architecture", ".json"
    ...     def export(self, model, path):
    ...         path = self.check_path(path)
    ...         _ = path.write_text(model.to_json())
    ...         return path
    >>> isa_tf.export(model, "model.json").name
    'model.json'
    """

    name: str
    suffix = ""
    by_suffix = True
    least_agreement = 0.999

    @property
    def file_name(self) -> str:
        """str, what its file is called where nothing else is said."""
        return f"model{self.suffix}" if self.suffix else self.name

    @property
    def options(self) -> dict[str, bool]:
        """dict of the names that `export` takes besides model and path; True for those it needs."""
        parameters = list(inspect.signature(self.export).parameters.values())[2:]
        return {p.name: p.default is p.empty for p in parameters}

    def recognises(self, path: Path) -> bool:
        """Whether what lies at a `Path` is (or wants to be) of this format."""
        return path.is_file() and path.suffix == self.suffix

    def export(self, model: keras.Model, path: StrPath) -> Path:
        """Writes a `keras.Model` to a path, whole or not at all; returns it as `pathlib.Path`.

        A subclass adds options of its own by name.
        """
        raise NotImplementedError

    def load(
        self,
        path: Path,
        num_threads: int | None = None,
        protocol: ProtocolBase | Mapping[str, Any] | None = None,
    ) -> Predictor | InstancePredictor:
        """The predictor of what lies at a `Path`; see `isa_tf.load_predictor`."""
        raise NotImplementedError

    def reference(self, model: keras.Model) -> keras.Model:
        """The model whose results a written one is to have: by default the model itself."""
        return model

    def least_for(self, model: keras.Model) -> float:
        """The `least_agreement` of what is written of a `keras.Model`; a format may ask for less.

        >>> isa_tf.formats.create("saved_model").least_for(model)
        0.999
        """
        return self.least_agreement

    def verify(self, path: StrPath, model: keras.Model, image: np.ndarray) -> Verification:
        """Loads what was written and compares it with the model, both seeing images alike.

        Of a segmentation model that is whole images.

        Args:
            path: of the file or folder.
            model: the `keras.Model` that was written to it.
            image: uint8 images (B, H, W, 3).

        Returns:
            `Verification`.

        Example:

        >>> path = isa_tf.export(model, "model.keras")
        >>> isa_tf.formats.find(path).verify(path, model, images).agreement
        1.0
        """
        path, model = Path(path), self.reference(model)
        contract = contract_of(model)
        protocol = contract.served_protocol
        expected = predictor_of_model(model, protocol=protocol)(image)
        predictor = self.load(path, protocol=protocol)
        result = contract.compare(expected, predictor(image))
        size = files.size(path)
        return Verification(**result, bytes=size, seconds=seconds_of(lambda: predictor(image)))

    def check_folder(self, path: StrPath, file: str, what: str) -> Path:
        """`check_path` of a folder, in whose place may be such a one, which holds `file`."""
        path = self.check_path(path)
        is_empty = path.is_dir() and not any(path.iterdir())
        if path.exists() and not is_empty and not (path / file).is_file():
            raise ValueError(f"{path}: there is something else than {what}; nothing written")
        return path

    def check_path(self, path: StrPath) -> Path:
        """The path, a `pathlib.Path`; ValueError for one of another suffix."""
        path = Path(path)
        if self.suffix and path.suffix != self.suffix:
            raise ValueError(f"a file of format {self.name!r} ends in {self.suffix}, got {path}")
        return path


def seconds_of(call: Callable[[], object], times: int = 3) -> float:
    """The shortest of several calls, in seconds, of what has been called before.

    >>> seconds_of(lambda: sum(range(10))) < 1
    True
    """
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def missing(path: StrPath, what: str, extra: str) -> ImportError:
    """The ImportError of a file whose format needs what is not installed, naming the extra."""
    return ImportError(f"{path} needs {what}, which is not installed: pip install isa_tf[{extra}]")


def check_model(model: object) -> None:
    """Raises ValueError for anything but a `keras.Model`."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"a keras.Model is needed, got {type(model).__name__}")


def one_at_a_time(function: Callable[..., _Answer]) -> Callable[..., _Answer]:
    """The function, which threads that share it wait for."""
    lock = threading.Lock()

    @functools.wraps(function)
    def alone(*args):
        with lock:
            return function(*args)

    return alone


@contextlib.contextmanager
def portable(model: keras.Model) -> Iterator[keras.Model]:
    """A model of ordinary operations, none of which XLA has to compile, for as long as it lasts.

    It is the model itself, whose layers do without meanwhile.

    >>> with portable(model) as plain:
    ...     logits = plain(images)
    """
    compiled = [
        (layer, name)
        for layer in flatten_layers(model)
        for name in ("jit_compile", "compile_transforms")
        if not isinstance(layer, keras.Model) and getattr(layer, name, False)
    ]
    before = [getattr(*each) for each in compiled]
    try:
        for each in compiled:
            setattr(*each, False)
        yield model
    finally:
        for each, value in zip(compiled, before, strict=True):
            setattr(*each, value)


def check_task(format: Format, model: keras.Model, task: str = "segmentation") -> None:
    """Raises ValueError for a model of another task than a format can be of."""
    found = contract_of(model).task
    if found != task:
        raise ValueError(
            f"{model.name} is of {found}, the format {format.name!r} is for {task} alone"
        )
