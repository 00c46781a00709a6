"""ISANet: the published network around interlaced sparse self-attention."""

import keras

from isa_tf import backbones
from isa_tf.layers import InterlacedSparseAttention
from isa_tf.models.segmenter import Segmenter


@keras.saving.register_keras_serializable("isa_tf")
class ISANet(Segmenter):
    """A dilated backbone, a 3x3 convolution, the ISA module and a classifier.

    The defaults are the published network: output stride 8, 512 channels, K = 256, partition 8x8,
    an auxiliary head on stage 3 with loss weight 0.4.

    Args:
        backbone: name of a backbone (see `isa_tf.backbones.create`), such as
            "efficientnet_lite0" or "keras:EfficientNetV2S", or an `isa_tf.backbones.Backbone`.
            Defaults to "resnet50".
        num_classes: int. Defaults to 19.
        weights: path of a `.weights.h5` or `.keras` file of this very network; `None` for random
            ones. Defaults to `None`.
        backbone_weights: what the backbone takes as `weights`, such as "imagenet". Defaults to
            `None`.
        output_stride: int, of a backbone given by name. Defaults to 8.
        partition: see `InterlacedSparseAttention`. Defaults to 8.
        key_filters: int; `None` for half of `head_filters`. Defaults to `None`.
        order: see `InterlacedSparseAttention`. Defaults to "long_short".
        depth: int. Defaults to 1.
        mask_padding: bool. Defaults to `True`.
        jit_compile: bool, whether XLA compiles the attention proper. Defaults to `False`.
        context_dropout: float, channel-wise, of the module's output. Defaults to 0.
        auxiliary_level: see `Segmenter`. Defaults to "c4".
        activation: see `Segmenter`. Defaults to "relu".
        dtype: name or policy of the layers. Defaults to `None`, the global policy.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        **kwargs: those of `Segmenter`: head_filters, decoder_levels, class_names, ...

    Shapes:
        (B, H, W, 3), RGB 0..255, any H and W -> (B, H, W, num_classes), float32.

    Raises:
        ValueError: as `Segmenter` and `InterlacedSparseAttention` do.

    Example:

    >>> model = ISANet("resnet18", num_classes=5, head_filters=32)
    >>> model.predict(np.zeros((1, 64, 96, 3), "uint8"), verbose=0).shape
    (1, 64, 96, 5)

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273.
    """

    def __init__(
        self,
        backbone="resnet50",
        num_classes=19,
        weights=None,
        backbone_weights=None,
        output_stride=8,
        partition=8,
        key_filters=None,
        order="long_short",
        depth=1,
        mask_padding=True,
        jit_compile=False,
        context_dropout=0.0,
        auxiliary_level="c4",
        activation="relu",
        dtype=None,
        synchronized=False,
        **kwargs,
    ):
        if isinstance(backbone, str):
            backbone = backbones.create(
                backbone,
                output_stride,
                backbone_weights,
                dtype=dtype,
                synchronized=synchronized,
            )
        context = InterlacedSparseAttention(
            partition,
            key_filters=key_filters,
            order=order,
            depth=depth,
            mask_padding=mask_padding,
            dropout=context_dropout,
            jit_compile=jit_compile,
            activation=activation,
            synchronized=synchronized,
            dtype=dtype,
            name="context",
        )
        super().__init__(
            backbone,
            context,
            num_classes,
            auxiliary_level=auxiliary_level,
            activation=activation,
            synchronized=synchronized,
            dtype=dtype,
            **kwargs,
        )
        if weights is not None:
            self.load_weights(weights)

    def get_config(self):
        config = super().get_config()
        del config["context"]
        attention = self.context.get_config()
        names = ("partition", "key_filters", "order", "depth", "mask_padding", "jit_compile")
        kept = {name: attention[name] for name in names}
        return {**config, **kept, "context_dropout": attention["dropout"]}

    @classmethod
    def from_preset(cls, name, num_classes=None, **arguments):
        """A published ISANet with its weights; see `isa_tf.models.from_preset`."""
        from isa_tf.models.presets import from_preset  # it imports this module

        return from_preset(name, num_classes, **arguments)
