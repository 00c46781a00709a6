"""What arguments of several rooms may be, by name, for annotations."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
import tensorflow as tf

Array: TypeAlias = np.ndarray | tf.Tensor
StrPath: TypeAlias = str | os.PathLike[str]
Size: TypeAlias = int | Sequence[int]  # of both sides, or (height, width)
Colors: TypeAlias = Sequence[Sequence[int]]  # RGB triples, 0..255
Shape: TypeAlias = Sequence[Any]  # of ints; None where a size is not known
DType: TypeAlias = str | keras.dtype_policies.DTypePolicy | None
Activation: TypeAlias = str | Callable[[tf.Tensor], tf.Tensor] | None
Partition: TypeAlias = str | int | Sequence[Any]  # see `isa_tf.layers.InterlacedSparseAttention`
Length: TypeAlias = int | tf.Tensor  # an int where it is known, else a scalar tensor
MapSize: TypeAlias = Sequence[Length]  # (height, width)
Radices: TypeAlias = (
    Sequence[Length] | Sequence[Sequence[Length]]
)  # a pair, or pairs coarse to fine
Levels: TypeAlias = int | Literal["auto"]  # how many there are
Level: TypeAlias = int | str  # 0, the longest range, to the last; or "long" or "short"
