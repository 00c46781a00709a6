"""Backbone -> context module -> decoder -> classifier: every segmentation model here."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from isa_tf import backbones
from isa_tf.hints import Activation, Colors, DType, StrPath
from isa_tf.layers import (
    ConvNormAct,
    InterlacedSparseAttention,
    ResizeBy,
    ResizeLike,
    create_context,
)
from isa_tf.layers.conv import BN_MOMENTUM
from isa_tf.layers.policy import checked_policy
from isa_tf.models.fitting import FittedModel

LOGITS = "logits"
AUXILIARY = "auxiliary_logits"
IMAGE = "image"  # what the head of a model reads beside the maps, for its size


@keras.saving.register_keras_serializable("isa_tf")
class Segmenter(FittedModel):
    """A semantic segmentation model around one context module.

    A map of the backbone, mostly its last, is narrowed by a convolution, goes through the
    context module and, if there is a decoder, is brought up to finer maps of the backbone; a 1x1
    convolution makes logits of it, which are resized to the image. `model(image)` and
    `model.predict` give those logits. With an auxiliary head the model gives, in training alone, a
    dictionary of "logits" and "auxiliary_logits", and `fit` adds `auxiliary_weight` times the
    auxiliary loss by itself.

    Args:
        backbone: `isa_tf.backbones.Backbone`, or the name of one (see `isa_tf.backbones.create`),
            such as "efficientnet_lite0" or "keras:EfficientNetV2S".
        context: the name of a context module (see `isa_tf.layers.create_context`); a layer from a
            map to a map of the same height and width; or `None`. Defaults to "isa".
        num_classes: int. Defaults to 19.
        context_options: dict of arguments of a context module given by name, such as
            `{"partition": 4}`. What the network itself is told of activation, momentum,
            minimal_filtering, synchronized and dtype, a module given by name is told too.
            Defaults to `None`.
        output_stride: int, of a backbone given by name. Defaults to `None`: 8, or the network's own
            where it cannot have 8, as HRNet's 4.
        backbone_weights: what a backbone given by name takes as `weights`, such as "imagenet".
            Defaults to `None`.
        head_filters: int, width of the map that the context module reads. Defaults to 512.
        head_kernel_size: int, of the convolution that narrows the last map. Defaults to 3.
        decoder_levels: names of backbone maps, coarse to fine, such as `("c3", "c2")`, that a light
            decoder joins one after the other; `()` for no decoder. Defaults to `()`.
        decoder_filters: int, width of the decoder, or one int a level. Defaults to 128.
        input_scale: float, by which the image is resized before the backbone reads it. Above 1 it
            makes thin things wide enough for small images' networks; logits are of the image's own
            size all the same. Defaults to 1.
        auxiliary_level: name of the backbone map that the auxiliary head reads ("c4" as
            published), or `None` for no such head. Defaults to `None`.
        auxiliary_filters: int. Defaults to 256.
        auxiliary_weight: float, of the auxiliary loss in training. Defaults to 0.4.
        dropout: float, channel-wise, before the classifiers. Defaults to 0.1.
        activation: name or callable, of the head. Defaults to "relu".
        coordinates: how the logits are resized to the image, see `ResizeLike`: "half_pixel", or
            "align_corners" as some published models were trained. Defaults to "half_pixel".
        class_names: names of the classes, kept with the model; or `None`.
        palette: colours of the classes, RGB 0..255, kept with the model; or `None`.
        protocol: how the model is to be tested, a dict of the arguments of
            `isa_tf.inference.Protocol` that is kept with the model; `None` for whole images.
            Defaults to `None`.
        momentum: float, of the head's batch normalisations. Defaults to 0.9.
        minimal_filtering: int or `None`, see `ConvNormAct`; also of a backbone given by name.
            Defaults to `None`.
        synchronized: bool, whether replicas share batch statistics (SyncBN), also in a backbone
            given by name. Defaults to `False`.
        dtype: name or policy of the layers; logits are float32. Defaults to `None`, the global
            policy.
        **kwargs: name, trainable.

    Shapes:
        (B, H, W, 3), RGB 0..255, any H and W -> (B, H, W, num_classes), float32.

    Raises:
        ValueError: for an unknown backbone, context or level, options of a module that was made
            already, or names and colours that are not as many as the classes.

    Example:

    >>> model = Segmenter("efficientnet_lite0", num_classes=5, head_filters=64)
    >>> model.predict(np.zeros((1, 65, 97, 3), "uint8"), verbose=0).shape
    (1, 65, 97, 5)

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273; the decoder after Chen et al., "Encoder-Decoder with Atrous Separable
    Convolution", ECCV 2018.
    """

    def __init__(
        self,
        backbone: str | backbones.Backbone,
        context: str | keras.layers.Layer | None = "isa",
        num_classes: int = 19,
        context_options: dict[str, Any] | None = None,
        output_stride: int | None = None,
        backbone_weights: StrPath | None = None,
        head_filters: int = 512,
        head_kernel_size: int = 3,
        decoder_levels: Sequence[str] = (),
        decoder_filters: int | Sequence[int] = 128,
        input_scale: float = 1.0,
        auxiliary_level: str | None = None,
        auxiliary_filters: int = 256,
        auxiliary_weight: float = 0.4,
        dropout: float = 0.1,
        activation: Activation = "relu",
        coordinates: str = "half_pixel",
        class_names: Sequence[str] | None = None,
        palette: Colors | None = None,
        protocol: dict[str, Any] | None = None,
        momentum: float = BN_MOMENTUM,
        minimal_filtering: int | None = None,
        synchronized: bool = False,
        dtype: DType = None,
        **kwargs: Any,
    ) -> None:
        policy = checked_policy(dtype, type(self).__name__)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        for name, given in (("class_names", class_names), ("palette", palette)):
            if given is not None and len(given) != num_classes:
                raise ValueError(f"{name} has {len(given)} entries for {num_classes} classes")
        shared = {"synchronized": synchronized, "dtype": dtype}
        if minimal_filtering is not None:  # which not every backbone of one's own may know
            shared["minimal_filtering"] = minimal_filtering
        if isinstance(backbone, str):
            strides = backbones.output_strides(backbone)
            if output_stride is None and (not strides or 8 in strides):
                output_stride = 8
            backbone = backbones.create(backbone, output_stride, backbone_weights, **shared)
        shared.update(activation=activation, momentum=momentum)
        if isinstance(context, str):
            options = {**shared, "name": "context", **(context_options or {})}
            context = create_context(context, **options)
        elif context_options:
            raise ValueError(f"context_options are of a module given by name, not of {context!r}")
        if isinstance(decoder_filters, int):
            widths: Sequence[int] = [decoder_filters] * len(decoder_levels)
        else:
            widths = decoder_filters
        if len(widths) != len(decoder_levels):
            raise ValueError(f"{len(widths)} decoder_filters for {len(decoder_levels)} levels")
        levels = [backbone.head_level, *decoder_levels]
        if auxiliary_level is not None:
            levels.append(auxiliary_level)
        for level in levels:
            if level not in backbone.feature_strides:
                known = ", ".join(backbone.feature_strides)
                raise ValueError(f"{backbone.name} has no map {level!r}; it has {known}")

        def conv(filters, kernel_size, name):
            return ConvNormAct(filters, kernel_size, name=name, **shared)

        def classify(x, name):
            x = keras.layers.SpatialDropout2D(dropout, dtype=dtype, name=f"{name}_dropout")(x)
            x = keras.layers.Conv2D(num_classes, 1, dtype=dtype, name=f"{name}_classifier")(x)
            return ResizeLike(coordinates, dtype="float32", name=name)([x, inputs])

        # === Functional model ===
        inputs = keras.Input((None, None, 3), name="image")
        x = inputs
        if input_scale != 1:
            x = ResizeBy(input_scale, dtype="float32", name="input_resize")(x)
        maps = backbone(x)
        x = conv(head_filters, head_kernel_size, "head")(maps[backbone.head_level])
        if context is not None:
            x = context(x)
        for level, filters in zip(decoder_levels, widths, strict=True):
            if x.shape[-1] != filters:
                x = conv(filters, 1, f"decoder_{level}_narrow")(x)
            skip = conv(filters // 2, 1, f"decoder_{level}_skip")(maps[level])
            x = ResizeLike(dtype=dtype, name=f"decoder_{level}_resize")([x, skip])
            x = keras.layers.Concatenate(dtype=dtype, name=f"decoder_{level}_join")([x, skip])
            for i in (1, 2):
                x = conv(None, 3, f"decoder_{level}_depthwise{i}")(x)
                x = conv(filters, 1, f"decoder_{level}_pointwise{i}")(x)
        outputs = classify(x, LOGITS)
        if auxiliary_level is not None:
            x = conv(auxiliary_filters, 3, "auxiliary")(maps[auxiliary_level])
            outputs = {LOGITS: outputs, AUXILIARY: classify(x, AUXILIARY)}
        trainable = kwargs.pop("trainable", True)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        if not trainable:  # said now, as Keras would say it before it knows of the layers
            self.trainable = False
        self._maps = {level: maps[level] for level in dict.fromkeys(levels)}

        # === Config ===
        self.dtype_policy = policy
        self.backbone = backbone
        self.context = context
        self.num_classes = num_classes
        self.head_filters = head_filters
        self.head_kernel_size = head_kernel_size
        self.decoder_levels = tuple(decoder_levels)
        self.decoder_filters = decoder_filters
        self.input_scale = input_scale
        self.auxiliary_level = auxiliary_level
        self.auxiliary_filters = auxiliary_filters
        self.auxiliary_weight = auxiliary_weight
        self.dropout = dropout
        self.activation = keras.activations.get(activation)
        self.coordinates = coordinates
        self.class_names = None if class_names is None else tuple(class_names)
        self.palette = None if palette is None else tuple(map(tuple, palette))
        self.protocol = None if protocol is None else dict(protocol)
        self.momentum = momentum
        self.minimal_filtering = minimal_filtering
        self.synchronized = synchronized

    def feature_extractor(self) -> keras.Model:
        """The part below the head: a model from an image to a dict of the maps that `head` reads.

        It has the variables of this model.
        """
        return keras.Model(self.input, dict(self._maps), name="feature_extractor")

    def head(self) -> "SegmenterHead":
        """The part above the backbone, to be trained on maps that were computed before.

        Its variables are those of this model: what is trained in one is trained in both.

        Returns:
            `SegmenterHead`.

        Example:

        >>> model = Segmenter("tiny", num_classes=3, head_filters=8)
        >>> images = tf.zeros((1, 32, 48, 3))
        >>> maps = model.feature_extractor()(images)
        >>> model.head()({**maps, "image": images}).shape
        TensorShape([1, 32, 48, 3])
        """
        return SegmenterHead(self)

    def for_classes(  # type: ignore[override]  # which labels there are is the class's own
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        palette: Colors | None = None,
    ) -> "Segmenter":
        """The model for other classes: new classifiers, and all other weights as they are.

        Args:
            num_classes: int; all rows of the classifiers are new, be they as many as before.
            class_names: names of these classes, or `None`. Defaults to `None`.
            palette: their colours, RGB 0..255, or `None`. Defaults to `None`.

        Returns:
            `Segmenter` of its own; the pairs that change places in a mirror are forgotten.

        Raises:
            ValueError: for names and colours that are not as many.

        Example:

        >>> model.for_classes(5).num_classes
        5
        """
        protocol = dict(self.protocol or {})
        protocol.pop("flip_pairs", None)  # of the other classes
        changes = {
            "num_classes": num_classes,
            "class_names": class_names,
            "palette": palette,
            "protocol": protocol or None,
        }
        other = type(self).from_config({**self.get_config(), **changes})
        for ours, theirs in zip(other.layers, self.layers, strict=True):
            if not ours.name.endswith("_classifier"):
                ours.set_weights(theirs.get_weights())
        return other

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> Any:
        if training:
            inputs = self._standardize_inputs(inputs)
            return super()._run_through_graph(inputs, operation_fn=lambda layer: layer)
        return super().call(inputs, training=training, mask=mask)

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, mask: Any = None
    ) -> Any:
        outputs = super().compute_output_spec(inputs, training=training, mask=mask)
        return outputs if training else _logits(outputs)

    def _run_through_graph(self, *args, **kwargs):
        # What `keras.models.clone_model` makes its copy by, which has no `call` of ours.
        return _logits(super()._run_through_graph(*args, **kwargs))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        auxiliary = None
        if isinstance(y_pred, dict):
            y_pred, auxiliary = y_pred[LOGITS], y_pred[AUXILIARY]
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if auxiliary is not None and self._compile_loss is not None:
            # By what Keras has made of the loss, be it a name, a function or a list of weighted
            # ones: it knows of sample weights, and that the losses of replicas are added up.
            loss += self.auxiliary_weight * self._compile_loss(y, auxiliary, sample_weight)
        return loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        if isinstance(y_pred, dict):
            y_pred = y_pred[LOGITS]
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "context": keras.saving.serialize_keras_object(self.context),
            "num_classes": self.num_classes,
            "head_filters": self.head_filters,
            "head_kernel_size": self.head_kernel_size,
            "decoder_levels": self.decoder_levels,
            "decoder_filters": self.decoder_filters,
            "input_scale": self.input_scale,
            "auxiliary_level": self.auxiliary_level,
            "auxiliary_filters": self.auxiliary_filters,
            "auxiliary_weight": self.auxiliary_weight,
            "dropout": self.dropout,
            "activation": keras.activations.serialize(self.activation),
            "coordinates": self.coordinates,
            "class_names": self.class_names,
            "palette": self.palette,
            "protocol": self.protocol,
            "momentum": self.momentum,
            "minimal_filtering": self.minimal_filtering,
            "synchronized": self.synchronized,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "Segmenter":
        config = upgrade(config)
        for part in ("backbone", "context"):
            if isinstance(config.get(part), dict):
                config[part] = keras.saving.deserialize_keras_object(config[part], custom_objects)
        return cls(**config)


class SegmenterHead(Segmenter):
    """What of a `Segmenter` stands above its backbone, as a model of its own.

    It is compiled and trained as the whole model is, whose variables it has; it is the whole
    model, `segmenter`, that is saved.

    Args:
        segmenter: `Segmenter`.

    Shapes:
        A dict of the maps that the head reads, by level, each (B, h, w, C), and of "image", of
        which only the size counts, (B, H, W, 3) -> (B, H, W, num_classes), float32.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        inputs = {**segmenter._maps, IMAGE: segmenter.input}
        for level, tensor in segmenter._maps.items():
            tensor.name = level  # else Keras warns of each that it is not the key
        # Past the whole model's constructor, which would make the layers anew.
        super(Segmenter, self).__init__(
            inputs=inputs, outputs=segmenter.output, name=f"{segmenter.name}_head"
        )
        self.auxiliary_weight = segmenter.auxiliary_weight
        # Within a function, where Keras does not count the backbone among this one's layers.
        self._whole = lambda: segmenter

    @property
    def segmenter(self) -> Segmenter:
        """The whole model."""
        return self._whole()

    def save_to_preset(self, folder: StrPath) -> None:
        """Refused: it is the whole model that is saved."""
        raise ValueError(f"{folder}: {self.name} is saved with its model, `head.segmenter`")


def _logits(outputs):
    """Those of a network's outputs that it gives outside of training."""
    return outputs[LOGITS] if isinstance(outputs, dict) else outputs


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a `Segmenter` from one of version 0.1, or of its subclass ISANet.

    That one had the arguments of its `InterlacedSparseAttention` loose among its own.

    Args:
        config: dict; one of today's comes back as it is.
    """
    config = dict(config)
    loose = ("partition", "key_filters", "order", "depth", "mask_padding", "jit_compile")
    if "context" not in config and "partition" in config:
        options = {name: config.pop(name) for name in loose}
        shared = {name: config[name] for name in ("activation", "synchronized", "dtype")}
        options |= {"dropout": config.pop("context_dropout"), **shared, "name": "context"}
        config["context"] = keras.saving.serialize_keras_object(
            InterlacedSparseAttention.from_config(options)
        )
    return config


@keras.saving.register_keras_serializable("isa_tf", "ISANet")
class _ISANetOfVersion01(Segmenter):
    """Under this name files of version 0.1 have what is a plain `Segmenter` today."""

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return Segmenter.from_config(config, custom_objects)
