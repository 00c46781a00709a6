"""What is said to those who would have a model quantised in place."""

from typing import NoReturn

import keras

_INT8 = (
    'isa_tf.export(model, "model.tflite", "litert_int8", image_size=(H, W), calibration=FOLDER) '
    "writes one that computes in int8"
)
_FLOAT16 = (
    'isa_tf.export(model, "model.tflite", "litert_fp16", image_size=(H, W)) writes one with '
    "weights of float16"
)


def refuse_to_quantize(model: keras.Model) -> NoReturn:
    """Raises ValueError: Keras quantises dense layers and embeddings alone; with what there is.

    Args:
        model: `keras.Model`.

    Example:

    >>> try:
    ...     refuse_to_quantize(model)
    ... except ValueError as error:
    ...     print(str(error)[-32:])
    writes one that computes in int8
    """
    instead = _FLOAT16 if hasattr(model, "task") else _INT8
    raise ValueError(f"{model.name}: Keras quantises no convolutions; {instead}")
