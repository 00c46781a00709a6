"""How a model is shown an image at test time."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from isa_tf.names import id_pairs, two_ints, unknown


@dataclasses.dataclass(frozen=True)
class ProtocolBase:
    """What protocols of all tasks have in common: they are data classes that JSON can hold."""

    def to_dict(self) -> dict[str, Any]:
        """The protocol as what JSON can hold; `from_dict` makes it again."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The protocol of a mapping of its arguments; absent ones have their defaults.

        Raises:
            ValueError: for an argument that is none, with the nearest that is one.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise ValueError(unknown("argument of a protocol", name, names))
        return cls(**values)

    @classmethod
    def of(cls, given: Self | Mapping[str, Any] | None) -> Self:
        """The protocol of what stands for one: itself, a mapping of its arguments, or `None`.

        `None` is the protocol of all defaults.

        Raises:
            ValueError: for a protocol of another kind, or an argument that is none.

        >>> Protocol.of({"flip": True}).num_views(), Protocol.of(None) == Protocol()
        (2, True)
        """
        if given is None:
            return cls()
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        if not isinstance(given, cls):
            why = " (the model is of another task)" if isinstance(given, ProtocolBase) else ""
            raise ValueError(f"a {cls.__name__} is needed, or its arguments, got {given!r}{why}")
        return given


@dataclasses.dataclass(frozen=True)
class Protocol(ProtocolBase):
    """How a model is shown an image at test time, as mmsegmentation 1.2.2 defines it.

    Every view of the image (each scale, and its mirror image) goes through the model, whole or in
    windows. Its logits are mirrored back and brought to the size of the image, bilinearly. Of one
    view the logits decide; of several, the mean of their softmax.

    Args:
        mode: "whole", or "slide": windows all over the view, whose logits are averaged where they
            overlap. Defaults to "whole".
        crop_size: (height, width) of a window, or one int for both; of "slide" alone. A view that
            is smaller makes windows of its own size. Defaults to `None`.
        stride: (vertical, horizontal) step from window to window, or one int; of "slide" alone. The
            last window is moved back inside the view. Defaults to `None`.
        scales: ratios at which the image is seen. Defaults to `(1.0,)`.
        fit_size: (long, short) side that the image is resized to fit into, times each scale,
            keeping its proportions; `None` for the image's own size. mmsegmentation tests ADE20K
            and VOC at `(2048, 512)` and its 769x769 models of Cityscapes at `(2049, 1025)`.
            Defaults to `None`.
        exact_size: (height, width) that the image is resized to, times each scale, whatever its
            proportions; the official code tests LIP at `(473, 473)`. Defaults to `None`.
        pad_size: (height, width) to which an image that is smaller is padded at its bottom and
            right, with mid-grey (128), before it is scaled; what is predicted there is cut off.
            PaddleSeg tests Cityscapes at `(1025, 2049)` and VOC at `(512, 512)`. Of `fit_size`,
            `exact_size` and this, one alone. Defaults to `None`.
        size_divisor: int, a multiple of which both sides of a whole view are padded to, at its
            bottom and right, with the mean colour; what is predicted there is cut off. The official
            code tests at multiples of 8. Not of "slide". Defaults to `None`.
        flip: bool, whether to see the mirror image (left to right) too. Defaults to `False`.
        flip_pairs: pairs of class ids that change places in a mirror, such as left and right arm;
            `((14, 15), (16, 17), (18, 19))` for LIP. They matter where `flip` is set. Defaults to
            `()`.

    Raises:
        ValueError: for a mode of another name, a window without stride (or either without
            "slide"), a stride that skips pixels, sizes or scales that are not above 0, pairs that
            are none or share a class.

    Example:

    >>> protocol = Protocol("slide", crop_size=769, stride=513, scales=(0.5, 1.0), flip=True)
    >>> Protocol.from_dict(protocol.to_dict()) == protocol
    True

    Source: mmsegmentation 1.2.2, `EncoderDecoder`, `SegTTAModel` and the `Resize` of its test
    pipelines.
    """

    mode: str = "whole"
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    fit_size: tuple[int, int] | None = None
    exact_size: tuple[int, int] | None = None
    pad_size: tuple[int, int] | None = None
    size_divisor: int | None = None
    flip: bool = False
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        for name in ("crop_size", "stride", "fit_size", "exact_size", "pad_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, two_ints(name, getattr(self, name)))
        object.__setattr__(self, "scales", _scales(self.scales))
        object.__setattr__(self, "flip_pairs", id_pairs("flip_pairs", self.flip_pairs))
        windows = (self.crop_size, self.stride)
        if self.mode not in ("whole", "slide"):
            raise ValueError(f'mode must be "whole" or "slide", got {self.mode!r}')
        if self.mode == "slide" and None in windows:
            raise ValueError(f'mode "slide" needs a crop_size and a stride, got {windows}')
        if self.mode == "whole" and windows != (None, None):
            raise ValueError(f'crop_size and stride are of mode "slide" alone, got {windows}')
        if self.mode == "slide" and any(s > c for c, s in zip(*windows, strict=True)):
            raise ValueError(f"a stride above the crop_size skips pixels, got {windows}")
        sizes = {name: getattr(self, name) for name in ("fit_size", "exact_size", "pad_size")}
        given = {name: size for name, size in sizes.items() if size is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other, got {given}")
        divisor = self.size_divisor
        if divisor is not None and (type(divisor) is not int or divisor < 1):
            raise ValueError(f"size_divisor must be an int above 0, got {divisor!r}")
        if divisor is not None and self.mode == "slide":
            raise ValueError('size_divisor is of mode "whole" alone: windows have one size')
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}")

    def num_views(self) -> int:
        """How many views of an image the protocol has."""
        return len(self.scales) * (1 + self.flip)

    def mirrored_classes(self, num_classes: int) -> list[int]:
        """For each class, the class whose scores in the mirror image are its own.

        Raises:
            ValueError: for `flip_pairs` of classes that are not there.
        """
        order = list(range(num_classes))
        for a, b in self.flip_pairs:
            if max(a, b) >= num_classes:
                raise ValueError(f"flip_pairs has {(a, b)}, classes are 0 to {num_classes - 1}")
            order[a], order[b] = b, a
        return order

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuses the only size that a model takes, (height, width), where others are needed.

        Raises:
            ValueError: for a window of another size, or whole images that are resized.
        """
        if self.mode == "slide":
            possible = self.crop_size == size
        else:
            resized = {self.fit_size, self.exact_size, self.pad_size, self.size_divisor} != {None}
            possible = self.scales == (1.0,) and not resized
        if not possible:
            raise ValueError(
                f"the model takes images of {size[0]}x{size[1]} alone: it can see whole images at "
                f"scale 1, or slide with crop_size={size}, got {self}"
            )


def _scales(value):
    try:
        scales = tuple(map(float, (value,) if np.isscalar(value) else value))
    except (TypeError, ValueError):
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be numbers above 0, at least one, got {value!r}")
    return scales
