"""Models of files, for the classes they were trained for or for others."""

from collections.abc import Sequence

import keras

from isa_tf import formats
from isa_tf.hints import Colors, StrPath
from isa_tf.presets import PresetModel


def load(
    path: StrPath,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    palette: Colors | None = None,
) -> keras.Model:
    """Loads the model of a `.keras` file; for other classes than its own, with new classifiers.

    Args:
        path: of the file.
        num_classes: int, for other classes: all weights but those of the classifiers are the
            file's. Defaults to `None`, the classes of the file.
        class_names: names of the other classes, or `None`. Defaults to `None`.
        palette: colours of the other classes, RGB 0..255, or `None`. Defaults to `None`.

    Returns:
        `keras.Model`, not compiled.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for a file that is no Keras model; for other classes of a model that is neither
            `Segmenter` nor `MaskRCNN`, or names and colours that are not as many.

    Example:

    >>> model = load("model.keras", num_classes=7)
    >>> model(image[None]).shape[-1]
    7
    """
    model = formats.load_model(path)
    if num_classes is None:
        if class_names is not None or palette is not None:
            raise ValueError("class_names and palette go with num_classes")
        return model
    if not isinstance(model, PresetModel):
        raise ValueError(
            f"{path}: a Segmenter or a MaskRCNN has classifiers to change, not {model.name}"
        )
    return model.for_classes(num_classes, class_names=class_names, palette=palette)
