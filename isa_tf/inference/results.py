"""Predictions as files, in the form that a benchmark's server takes."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from PIL import Image

from isa_tf import files
from isa_tf.data.base import SegmentationDataset
from isa_tf.hints import StrPath
from isa_tf.inference.predictor import Predictor

# Of the files that examples are named by; what else has a dot keeps it.
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the pixels of a result file stand for, and what it is called.

    Args:
        ids: for each class, the id in the file; `None` for the class ids as they are. Defaults to
            `None`.
        palette: RGB triples, the colours of the ids in the file, with which it is a palette PNG;
            `None` for grey. Defaults to `None`.
        suffix: str, put between an example's name and ".png". Defaults to "".

    Raises:
        ValueError: for ids that a byte does not hold or that stand for two classes, or more
            colours than 256.

    Example:

    >>> Encoding(ids=(7, 8, 11)).encode(np.array([[0, 2, 2]]))
    array([[ 7, 11, 11]], dtype=uint8)
    """

    ids: tuple[int, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    suffix: str = ""

    def __post_init__(self):
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(int(i) for i in self.ids))
            if not all(0 <= i <= 255 for i in self.ids) or len({*self.ids}) != len(self.ids):
                raise ValueError(f"ids are 0 to 255, each once, got {self.ids}")
        if self.palette is not None:
            palette = tuple(tuple(int(value) for value in color) for color in self.palette)
            object.__setattr__(self, "palette", palette)
            if len(palette) > 256 or any(len(color) != 3 for color in palette):
                raise ValueError(f"a palette has at most 256 RGB triples, got {palette}")

    @classmethod
    def of(cls, dataset: SegmentationDataset) -> Self:
        """The encoding that a dataset declares.

        It declares `submission_ids`, `submission_palette` and `submission_suffix`, each where it
        needs to: `ids`, `palette` and `suffix` of its encoding. Cityscapes has the labelIds of its
        19 classes, ADE20K 1 to 150, PASCAL VOC its palette; LIP needs none.

        Args:
            dataset: `SegmentationDataset`.

        Example:

        >>> Encoding.of(data)
        Encoding(ids=None, palette=None, suffix='')
        """
        names = [field.name for field in dataclasses.fields(cls)]
        told = {name: getattr(dataset, f"submission_{name}", None) for name in names}
        return cls(**{name: value for name, value in told.items() if value is not None})

    def encode(self, class_id: np.ndarray) -> np.ndarray:
        """The pixels of a file: uint8 (H, W) of class ids (H, W).

        Raises:
            ValueError: for a class without an id.
        """
        class_id = np.asarray(class_id)
        known = 256 if self.ids is None else len(self.ids)
        if class_id.size and not 0 <= class_id.min() <= class_id.max() < known:
            raise ValueError(f"class {class_id.max()} has no id: the ids are of 0 to {known - 1}")
        return (class_id if self.ids is None else np.array(self.ids)[class_id]).astype(np.uint8)

    def picture(self, class_id: np.ndarray) -> Image.Image:
        """A Pillow image of class ids (H, W): of mode "L", or of "P" where there is a palette."""
        picture = Image.fromarray(self.encode(class_id))
        if self.palette is not None:
            picture.putpalette(np.array(self.palette, np.uint8).tobytes())
        return picture


def write_results(
    predictor: Predictor,
    dataset: SegmentationDataset,
    split: str,
    folder: StrPath,
    encoding: "Encoding | None" = None,
    facts: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes what is predicted for each image of a split, a PNG each, for a benchmark's server.

    The folder holds nothing else. What the results are of stands beside it, in a file of its name
    and ".results.json". Each file is whole or not there; when it is called again, what is there
    stays and the rest is written. Labels are not looked at, so a split needs none.

    Args:
        predictor: `Predictor`.
        dataset: `SegmentationDataset`; its `read` may give any label, as `None`.
        split: str.
        folder: path, new or of the same results.
        encoding: `Encoding`. Defaults to `None`, for the one that the dataset declares.
        facts: mapping of str to what JSON can hold, what else tells these results from others,
            such as which model predicts. Defaults to `None`.

    Returns:
        List of the paths of all the files, in the order of the split.

    Raises:
        ValueError: for an unknown split, a predictor of other classes, a class without an id, or
            two examples of the same name.
        FileExistsError: for a folder of other results, or of files that are none.

    Example:

    >>> paths = write_results(predictor, data, "test", "results", Encoding(ids=range(1, 12)))
    >>> [path.name for path in paths]
    ['0.png', '1.png']
    >>> Image.open(paths[0]).size
    (128, 96)
    """
    folder = Path(folder)
    encoding = Encoding.of(dataset) if encoding is None else encoding
    classes = dataset.num_classes
    if predictor.num_classes not in (None, classes):
        raise ValueError(
            f"the predictor has {predictor.num_classes} classes, {dataset.name} has {classes}"
        )
    if encoding.ids is not None and len(encoding.ids) != classes:
        raise ValueError(f"{len(encoding.ids)} ids for the {classes} classes of {dataset.name}")
    paths = [folder / f"{name}{encoding.suffix}.png" for name in _names(dataset, split)]
    told = {
        "dataset": dataset.name,
        "split": split,
        "images": len(paths),
        "protocol": predictor.protocol.to_dict(),
        "encoding": dataclasses.asdict(encoding),
        **(facts or {}),
    }
    _claim(folder, json.loads(json.dumps(told)), paths)
    for index, path in enumerate(paths):
        if path.exists():
            continue
        image = dataset.read(split, index)[0]
        picture = encoding.picture(predictor(image)[0])
        with files.replacing(path) as new:
            picture.save(new, format="PNG")
    return paths


def _names(dataset, split):
    """What the files of a split are called, without their suffix: each a name of its own."""
    examples, names = dataset.examples(split), {}
    for example in examples:
        path = PurePosixPath(str(example).replace("\\", "/"))
        name = path.stem if path.suffix.lower() in _SUFFIXES else path.name
        if name in names:
            raise ValueError(
                f"{names[name]} and {example} would both be called {name}.png; a server tells "
                "images apart by the names of files alone"
            )
        names[name] = example
    return list(names)


def _claim(folder, told, paths):
    """Makes a folder for results, or sees that it is of the same ones."""
    record = folder.with_name(f"{folder.name}.results.json")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = {name for name in found if not name.startswith(".new-")}
    before = files.read_json(record) if found else None
    if found and before != told:
        differ = [key for key in told if not before or before.get(key) != told[key]]
        reason = f"of another {', '.join(differ)}" if before else f"and no {record.name} beside it"
        raise FileExistsError(
            f"{folder} holds {len(found)} files, {reason}; what is there is as it was: name "
            "another folder"
        )
    if strange := sorted(found - {path.name for path in paths}):
        raise FileExistsError(
            f"{folder} holds {strange[0]}, which is no result of this split; name another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    files.write_json(record, told, indent=1)
