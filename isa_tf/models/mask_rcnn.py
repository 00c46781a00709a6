"""Mask R-CNN over a pyramid: boxes, classes and masks of objects."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from isa_tf import backbones, losses, ops
from isa_tf.compat import flatten_layers
from isa_tf.hints import Colors, DType, StrPath
from isa_tf.layers import (
    Detections,
    FillPadding,
    MasksOfClasses,
    Proposals,
    PyramidAnchors,
    PyramidRoIAlign,
)
from isa_tf.layers.policy import checked_policy
from isa_tf.models.detection_parts import PYRAMID_LEVELS, Parts
from isa_tf.models.fitting import FittedModel

# In the order in which they are reported.
LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box", "mask")
# The layers whose outputs are of classes, by the head that they end.
OF_CLASSES = {"box_head": ("logits", "codes"), "mask_head": ("logits",)}


@keras.saving.register_keras_serializable("isa_tf")
class MaskRCNN(FittedModel):
    """Mask R-CNN with a feature pyramid: finds objects, tells their classes, and cuts them out.

    A backbone's maps become a pyramid; a proposal network says where objects may be; in these boxes
    the pyramid is sampled (RoIAlign), a box head tells classes and corrects boxes, and a mask head
    draws what is found. A context module stands inside the backbone (`context_at` of ResNet and
    HRNet): `MaskRCNN(backbones.create("resnet50", context_at={"c4": "isa"}))`.

    All shapes are fixed but for the image's, so it can be compiled, distributed and exported. It is
    compiled without a loss, `model.compile(optimizer)`, and `fit` on batches (x, y) of
    `isa_tf.data.instance_train_pipeline`; beside "loss" its five parts are reported.

    Args:
        backbone: `isa_tf.backbones.Backbone` with maps "c2" .. "c5" of strides 4 .. 32, or the name
            of one. Defaults to "resnet50".
        num_classes: int, without the background. Defaults to 80.
        backbone_weights: what a backbone given by name takes as `weights`, such as "imagenet".
            Defaults to `None`.
        freeze_at: name of the backbone's map up to which nothing learns, such as "c2" where its
            weights are trained already; `None` for none. Defaults to `None`.
        freeze_norm: bool, whether the backbone's normalisations keep their statistics, scale and
            offset, but for those of its context modules. Defaults to `False`.
        filters: int, width of the pyramid and of the heads' convolutions. Defaults to 256.
        normalized_heads: bool, whether convolutions of pyramid and heads are normalised, as in
            torchvision's second version. Defaults to `False`.
        anchor_sizes: five floats, in pixels, for the pyramid's maps. Defaults to (32, .., 512).
        aspect_ratios: floats, of the anchors' heights over widths. Defaults to (0.5, 1, 2).
        anchors: "torchvision" or "detectron", see `isa_tf.layers.PyramidAnchors`. Defaults to
            "torchvision".
        aligned: bool, of RoIAlign, see `isa_tf.ops.roi_align`. Defaults to `False`.
        sampling_ratio: int, of RoIAlign. Defaults to 2.
        rpn_convs: int, convolutions of the proposal head. Defaults to 1.
        box_convs: int, convolutions of the box head. Defaults to 0.
        box_units: ints, widths of its dense layers. Defaults to (1024, 1024).
        mask_convs: int, convolutions of the mask head. Defaults to 4.
        proposals_before: (in training, else) how many proposals of each level are looked at.
            Defaults to (2000, 1000).
        proposals_after: (in training, else) how many are kept. Defaults to (2000, 1000).
        rpn_samples: int, anchors drawn of an image in training. Defaults to 256.
        box_samples: int, proposals drawn, a quarter of which may be positive. Defaults to 512.
        score_threshold: float; what is found has a higher score. Defaults to 0.05.
        nms_threshold: float, the IoU above which one of two detections of a class is dropped.
            Defaults to 0.5.
        max_detections: int, of an image. Defaults to 100.
        beta: float, up to which errors of boxes count as squares, see `isa_tf.losses.smooth_l1`.
            Defaults to 1 / 9.
        class_names: names of the classes, kept with the model; or `None`.
        palette: colours of the classes, RGB 0..255, kept with the model; or `None`.
        category_ids: the data set's own ids of the classes, such as COCO's 1 .. 90, kept with the
            model; or `None`.
        protocol: how images are resized for the model, a dict of the arguments of
            `isa_tf.inference.DetectionProtocol` that is kept with it; or `None`.
        momentum: float, of normalisations in the heads. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        dtype: name or policy of the layers; boxes, scores and losses are float32. Defaults to
            `None`, the global policy.
        **kwargs: name, trainable.

    Call arguments:
        inputs: dict of "image" (B, H, W, 3), RGB 0..255, and "size" (B, 2), int32: the height and
            width of each image in the padded batch; or the images alone where nothing is padded.
        training: bool. In training it gives what `compute_loss` reads: maps, logits, codes and
            anchors.

    Returns:
        dict of "boxes" (B, D, 4), (x1, y1, x2, y2) in pixels; "scores" (B, D), which fall;
        "classes" (B, D), int32, from 0; "valid" (B, D), bool, `False` for what fills up; and
        "masks" (B, D, 28, 28), the probabilities inside of each box. D is `max_detections`.

    Raises:
        ValueError: for a backbone without such maps, an unknown level or convention, so few samples
            that none may be positive, or names, colours and ids that are not as many as the
            classes.

    Example:

    >>> backbone = isa_tf.backbones.create("resnet18", filters=8, context_at={"c4": "isa"})
    >>> model = MaskRCNN(backbone, num_classes=3, filters=16, box_units=(32,), max_detections=5)
    >>> found = model(np.zeros((1, 64, 96, 3), "float32"))
    >>> found["boxes"].shape, found["masks"].shape
    (TensorShape([1, 5, 4]), TensorShape([1, 5, 28, 28]))

    Paper: He et al., "Mask R-CNN", arXiv 1703.06870; numbers and conventions are torchvision's.
    """

    task = "instance_segmentation"

    def __init__(
        self,
        backbone: str | backbones.Backbone = "resnet50",
        num_classes: int = 80,
        backbone_weights: StrPath | None = None,
        freeze_at: str | None = None,
        freeze_norm: bool = False,
        filters: int = 256,
        normalized_heads: bool = False,
        anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchors: str = "torchvision",
        aligned: bool = False,
        sampling_ratio: int = 2,
        rpn_convs: int = 1,
        box_convs: int = 0,
        box_units: Sequence[int] = (1024, 1024),
        mask_convs: int = 4,
        proposals_before: Sequence[int] = (2000, 1000),
        proposals_after: Sequence[int] = (2000, 1000),
        rpn_samples: int = 256,
        box_samples: int = 512,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        beta: float = 1 / 9,
        class_names: Sequence[str] | None = None,
        palette: Colors | None = None,
        category_ids: Sequence[int] | None = None,
        protocol: dict[str, Any] | None = None,
        momentum: float = 0.9,
        synchronized: bool = False,
        dtype: DType = None,
        **kwargs: Any,
    ) -> None:
        policy = checked_policy(dtype, type(self).__name__)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        for name, given in (
            ("class_names", class_names),
            ("palette", palette),
            ("category_ids", category_ids),
        ):
            if given is not None and len(given) != num_classes:
                raise ValueError(f"{name} has {len(given)} entries for {num_classes} classes")
        if isinstance(backbone, str):
            shared = {"synchronized": synchronized, "dtype": dtype}
            backbone = backbones.create(backbone, 32, backbone_weights, **shared)
        _check_levels(backbone)
        if len(anchor_sizes) != len(PYRAMID_LEVELS) + 1:
            raise ValueError(f"anchor_sizes must be five, one a map, got {anchor_sizes}")
        for name, samples, share in (("rpn", rpn_samples, 2), ("box", box_samples, 4)):
            if samples < share:
                raise ValueError(
                    f"{name}_samples must be at least {share}, for 1 of {share} may be positive, "
                    f"got {samples}"
                )
        parts = Parts(filters, normalized_heads, momentum, synchronized, dtype)

        # === Layers ===
        rpn_head = parts.proposal_head(len(aspect_ratios), rpn_convs)
        box_head = parts.box_head(num_classes, 7, box_convs, box_units)
        mask_head = parts.mask_head(num_classes, 14, mask_convs)
        propose = Proposals(proposals_before, proposals_after, name="proposals")
        sampling: dict[str, Any] = {
            "sampling_ratio": sampling_ratio,
            "aligned": aligned,
            "dtype": dtype,
        }
        box_align = PyramidRoIAlign(7, **sampling, name="box_align")
        mask_align = PyramidRoIAlign(14, **sampling, name="mask_align")
        detect = Detections(max_detections, score_threshold, nms_threshold, name="detections")

        # === Functional model ===
        image = keras.Input((None, None, 3), name="image")
        size = keras.Input((2,), dtype="int32", name="size")
        inputs = {"image": image, "size": size}
        maps = backbone(FillPadding(_zero_of(backbone), name="fill_padding")([image, size]))
        maps = {level: maps[level] for level in PYRAMID_LEVELS}
        pyramid = parts.pyramid({level: x.shape[-1] for level, x in maps.items()})(maps)
        anchors_of = PyramidAnchors(anchor_sizes, aspect_ratios, anchors, name="anchors")
        said = [rpn_head(x) for x in pyramid]
        seen = {
            "logits": [logits for logits, _ in said],
            "codes": [codes for _, codes in said],
            "anchors": anchors_of([image, *pyramid]),
        }
        proposals, valid = propose({**seen, "size": size})
        sampled = pyramid[: len(PYRAMID_LEVELS)]
        logits, codes = box_head(box_align([proposals, *sampled]))
        outputs = detect(
            {
                "logits": logits,
                "codes": codes,
                "proposals": proposals,
                "proposals_valid": valid,
                "size": size,
            }
        )
        masks = mask_head(mask_align([outputs["boxes"], *sampled]))
        masks = MasksOfClasses(name="masks")([masks, outputs["classes"], outputs["valid"]])
        trainable = kwargs.pop("trainable", True)
        super().__init__(inputs=inputs, outputs={**outputs, "masks": masks}, **kwargs)
        # The part that training runs; not an attribute, as its layers would count twice.
        trunk = keras.Model(inputs, {**seen, "pyramid": sampled})
        self._run_trunk = lambda inputs, training: trunk(inputs, training=training)
        self.loss_parts: list[keras.metrics.Metric] = []

        # === Config ===
        self.dtype_policy = policy
        self.backbone = backbone
        self.num_classes = num_classes
        self.freeze_at = freeze_at
        self.freeze_norm = freeze_norm
        self.filters = filters
        self.normalized_heads = normalized_heads
        self.anchor_sizes = tuple(anchor_sizes)
        self.aspect_ratios = tuple(aspect_ratios)
        self.anchors = anchors
        self.aligned = aligned
        self.sampling_ratio = sampling_ratio
        self.rpn_convs = rpn_convs
        self.box_convs = box_convs
        self.box_units = tuple(box_units)
        self.mask_convs = mask_convs
        self.proposals_before = tuple(proposals_before)
        self.proposals_after = tuple(proposals_after)
        self.rpn_samples = rpn_samples
        self.box_samples = box_samples
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.beta = beta
        self.class_names = None if class_names is None else tuple(class_names)
        self.palette = None if palette is None else tuple(map(tuple, palette))
        self.category_ids = None if category_ids is None else tuple(category_ids)
        self.protocol = None if protocol is None else dict(protocol)
        self.momentum = momentum
        self.synchronized = synchronized
        _freeze(backbone, freeze_at, freeze_norm)
        if not trainable:  # said now, as Keras would say it before it knows of the layers
            self.trainable = False

    def for_classes(  # type: ignore[override]  # which labels there are is the class's own
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        palette: Colors | None = None,
        category_ids: Sequence[int] | None = None,
    ) -> "MaskRCNN":
        """The detector for other classes: new classifiers, and all other weights as they are.

        New are the last layers of box and mask head, whose outputs are of classes.

        Args:
            num_classes: int, without the background.
            class_names: names of these classes, or `None`. Defaults to `None`.
            palette: their colours, RGB 0..255, or `None`. Defaults to `None`.
            category_ids: the data set's own ids of them, or `None`. Defaults to `None`.

        Returns:
            `MaskRCNN` of its own.

        Raises:
            ValueError: for names, colours and ids that are not as many.

        Example:

        >>> detector.for_classes(5).get_layer("box_head").output_shape
        [(None, 6), (None, 20)]
        """
        changes = {
            "num_classes": num_classes,
            "class_names": class_names,
            "palette": palette,
            "category_ids": category_ids,
        }
        other = type(self).from_config({**self.get_config(), **changes})
        for ours, theirs in zip(other.layers, self.layers, strict=True):
            if ours.name not in OF_CLASSES:
                ours.set_weights(theirs.get_weights())
                continue
            for layer, own in zip(ours.layers, theirs.layers, strict=True):
                if layer.name not in OF_CLASSES[ours.name]:
                    layer.set_weights(own.get_weights())
        return other

    # === Calls ===

    @property
    def input_spec(self) -> None:
        # Keras's own would refuse the images alone.
        return None

    def call(
        self,
        inputs: tf.Tensor | Mapping[str, tf.Tensor],
        training: bool | None = None,
        mask: Any = None,
    ) -> dict[str, Any]:
        inputs = _with_sizes(inputs)
        if training:
            return self._run_trunk(inputs, training=True)
        return super().call(inputs, training=False, mask=mask)

    def compute_output_spec(
        self,
        inputs: tf.Tensor | Mapping[str, tf.Tensor],
        training: bool | None = None,
        mask: Any = None,
    ) -> dict[str, Any]:
        if training:
            return keras.backend.compute_output_spec(self.call, inputs, training=True)
        return super().compute_output_spec(_with_sizes(inputs), training=training, mask=mask)

    # === Training ===

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        self.loss_parts = [keras.metrics.Mean(name=name) for name in LOSSES]

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # As Keras's own, which leaves models with a `compile` of their own uncompiled.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        seen = self._run_trunk(_with_sizes(x), training=False)
        loss = self._compute_loss(x, y, seen, sample_weight, training=False)
        replicas = self.distribute_strategy.num_replicas_in_sync
        self._loss_tracker.update_state(loss * replicas, tf.shape(y["boxes"])[0])
        return self.get_metrics_result()

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """The sum of the five losses and of what layers add; see `isa_tf.ops.targets` for `y`.

        Args:
            x: dict of "image" and "size", or the images alone.
            y: dict, the truth of the batch.
            y_pred: what a call in training gives.
            sample_weight: refused: images cannot be weighed.
            training: bool, whether the heads' normalisations learn. Defaults to `True`.
        """
        if sample_weight is not None:
            raise ValueError("MaskRCNN cannot weigh the images of a batch: sample_weight is given")
        parts = self.compute_losses(_with_sizes(x), y, y_pred, training)
        if self.loss_parts:  # which `compile` makes
            for metric, part in zip(self.loss_parts, parts.values(), strict=True):
                # Each replica has its share of the loss, and metrics take the mean.
                metric.update_state(part * self.distribute_strategy.num_replicas_in_sync)
        return tf.add_n([*parts.values(), *self.losses])

    def compute_losses(
        self,
        x: Mapping[str, tf.Tensor],
        y: Mapping[str, tf.Tensor],
        seen: Mapping[str, Any],
        training: bool = True,
    ) -> dict[str, tf.Tensor]:
        """The five losses by name; arguments as of `compute_loss`, which adds them up."""
        logits, codes, anchors = (
            tf.concat(seen[name], axis)
            for name, axis in (("logits", 1), ("codes", 1), ("anchors", 0))
        )
        drawn = ops.anchor_targets(anchors, y, self.rpn_samples)
        of_drawn = {"indices": drawn["indices"], "batch_dims": 1}
        found = self.rpn_losses(tf.gather(logits, **of_drawn), tf.gather(codes, **of_drawn), drawn)
        propose = self.get_layer("proposals")
        listed = {name: seen[name] for name in ("logits", "codes", "anchors")}
        proposals, valid = propose({**listed, "size": x["size"]}, training=True)
        drawn = ops.proposal_targets(proposals, valid, y, self.box_samples)
        return found | self.roi_losses(seen["pyramid"], drawn, y, training)

    def rpn_losses(
        self, logits: tf.Tensor, codes: tf.Tensor, drawn: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Those of the proposal network of the anchors that `ops.anchor_targets` has drawn."""
        values = losses.proposal_losses(
            logits,
            codes,
            drawn["boxes"],
            drawn["references"],
            drawn["positive"],
            drawn["valid"],
            self.beta,
        )
        return dict(zip(LOSSES[:2], values, strict=True))

    def roi_losses(
        self,
        pyramid: Sequence[tf.Tensor],
        drawn: Mapping[str, tf.Tensor],
        y: Mapping[str, tf.Tensor],
        training: bool = True,
    ) -> dict[str, tf.Tensor]:
        """Those of the heads in the proposals that `ops.proposal_targets` has drawn."""
        number = drawn["labels"].shape[1]
        detect = self.get_layer("detections")
        sampled = self.get_layer("box_align")([drawn["references"], *pyramid])
        logits, codes = self.get_layer("box_head")(sampled, training=training)
        values = losses.box_losses(
            tf.reshape(logits, (-1, number, self.num_classes + 1)),
            tf.reshape(codes, (-1, number, self.num_classes, 4)),
            drawn["boxes"],
            drawn["references"],
            drawn["labels"],
            drawn["valid"],
            detect.code_weights,
            self.beta,
        )
        # Positives come first, and no more than a quarter.
        number //= 4
        rois, labels, matches = (
            drawn[name][:, :number] for name in ("references", "labels", "matches")
        )
        sampled = self.get_layer("mask_align")([rois, *pyramid])
        masks = self.get_layer("mask_head")(sampled, training=training)
        masks = tf.reshape(masks, (-1, number, *masks.shape[1:]))
        positive = labels > 0
        truth = ops.mask_targets(rois, matches, y, masks.shape[2], positive)
        mask = losses.mask_loss(masks, truth, labels - 1, positive)
        return dict(zip(LOSSES[2:], (*values, mask), strict=True))

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "freeze_at": self.freeze_at,
            "freeze_norm": self.freeze_norm,
            "filters": self.filters,
            "normalized_heads": self.normalized_heads,
            "anchor_sizes": self.anchor_sizes,
            "aspect_ratios": self.aspect_ratios,
            "anchors": self.anchors,
            "aligned": self.aligned,
            "sampling_ratio": self.sampling_ratio,
            "rpn_convs": self.rpn_convs,
            "box_convs": self.box_convs,
            "box_units": self.box_units,
            "mask_convs": self.mask_convs,
            "proposals_before": self.proposals_before,
            "proposals_after": self.proposals_after,
            "rpn_samples": self.rpn_samples,
            "box_samples": self.box_samples,
            "score_threshold": self.score_threshold,
            "nms_threshold": self.nms_threshold,
            "max_detections": self.max_detections,
            "beta": self.beta,
            "class_names": self.class_names,
            "palette": self.palette,
            "category_ids": self.category_ids,
            "protocol": self.protocol,
            "momentum": self.momentum,
            "synchronized": self.synchronized,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        if isinstance(config.get("backbone"), dict):
            config["backbone"] = keras.saving.deserialize_keras_object(
                config["backbone"], custom_objects
            )
        return cls(**config)


def _with_sizes(inputs):
    """Inputs with each image's size, where there are images alone."""
    if isinstance(inputs, dict):
        return inputs
    image = keras.ops.convert_to_tensor(inputs)
    size = keras.ops.shape(image)
    size = tf.tile(tf.cast([size[1:3]], tf.int32), (size[0], 1))
    return {"image": image, "size": size}


def _check_levels(backbone):
    expected = {level: 4 * 2**i for i, level in enumerate(PYRAMID_LEVELS)}
    strides = getattr(backbone, "feature_strides", {})
    found = {level: strides.get(level) for level in PYRAMID_LEVELS}
    if found != expected:
        raise ValueError(
            f"a pyramid is made of maps of strides {expected}; {backbone.name} has {strides}"
        )


def _zero_of(backbone):
    """The colour that becomes zeros behind a backbone's normalisation."""
    try:
        layer = backbone.get_layer("normalize")
    except ValueError:
        return (0.0, 0.0, 0.0)
    scale, offset = (tf.broadcast_to(v, (3,)).numpy() for v in (layer.scale, layer.offset))
    return [-float(o) / float(s) for s, o in zip(scale, offset, strict=True)]


def _freeze(backbone, freeze_at, freeze_norm):
    """Keeps a backbone's weights up to a map, and its normalisations, as they are."""
    contexts = getattr(backbone, "context_layers", dict)().values()
    learning = {id(part) for layer in contexts for part in flatten_layers(layer)}
    if freeze_at is not None:
        if freeze_at not in backbone.feature_strides:
            known = ", ".join(backbone.feature_strides)
            raise ValueError(f"{backbone.name} has no map {freeze_at!r}; it has {known}")
        for layer in keras.Model(backbone.input, backbone.output[freeze_at]).layers:
            if id(layer) not in learning:
                layer.trainable = False
    if freeze_norm:
        for layer in flatten_layers(backbone):
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            if is_norm and id(layer) not in learning:
                layer.trainable = False
