"""Interlaced sparse self-attention: long-range, then short-range, each in small groups."""

import keras
import tensorflow as tf

from isa_tf import ops
from isa_tf.layers.module import AttentionModule, ModuleTwin, check_positive
from isa_tf.layers.self_attention import (
    AUTO,
    AttentionTwin,
    SelfAttention2D,
    check_partition,
    pad_and_mask,
)

ORDERS = {
    "long_short": (ops.LONG, ops.SHORT),
    "short_long": (ops.SHORT, ops.LONG),
    "long": (ops.LONG,),
    "short": (ops.SHORT,),
}


class _Sparse(SelfAttention2D):
    def __init__(self, partition=8, **kwargs):
        super().__init__(partition, **kwargs)

    def resolve_partition(self, size):
        return ops.best_partition(*size) if self.partition == AUTO else self.partition


@keras.saving.register_keras_serializable("isa_tf")
class LongRangeAttention(_Sparse):
    """Self-attention among positions P rows and columns apart, spread over the whole map.

    Positions with the same (row mod P_h, column mod P_w) form a group: P_h P_w groups of Q_h Q_w
    positions, Q = ceil(size / P). A map that P does not divide is padded with zeros on all sides
    and cropped again.

    Args:
        partition: int, pair (P_h, P_w), or "auto" for the partition with the fewest affinity
            entries of a long and a short attention on the map at hand. Defaults to 8.
        **kwargs: those of `SelfAttention2D`, with the same meaning.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for a partition, filters or key_filters below 1, or an input that is no map.

    Example:

    >>> y = LongRangeAttention(partition=4)(keras.random.normal((1, 10, 13, 8)))
    >>> y.shape
    TensorShape([1, 10, 13, 8])

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273.
    """

    kind = ops.LONG


@keras.saving.register_keras_serializable("isa_tf")
class LongRangeAttentionTwin(AttentionTwin, LongRangeAttention):
    """The twin of `LongRangeAttention`, whose arguments it has."""


LongRangeAttention.twin_class = LongRangeAttentionTwin


@keras.saving.register_keras_serializable("isa_tf")
class ShortRangeAttention(_Sparse):
    """Self-attention among the P_h x P_w neighbours of a block.

    Positions with the same (row div P_h, column div P_w) form a group: Q_h Q_w groups of P_h P_w
    positions, Q = ceil(size / P). A map that P does not divide is padded with zeros on all sides
    and cropped again.

    Args:
        partition: int, pair (P_h, P_w), or "auto" for the partition with the fewest affinity
            entries of a long and a short attention on the map at hand. Defaults to 8.
        **kwargs: those of `SelfAttention2D`, with the same meaning.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for a partition, filters or key_filters below 1, or an input that is no map.

    Example:

    >>> y = ShortRangeAttention(partition=4)(keras.random.normal((1, 10, 13, 8)))
    >>> y.shape
    TensorShape([1, 10, 13, 8])

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273.
    """

    kind = ops.SHORT


@keras.saving.register_keras_serializable("isa_tf")
class ShortRangeAttentionTwin(AttentionTwin, ShortRangeAttention):
    """The twin of `ShortRangeAttention`, whose arguments it has."""


ShortRangeAttention.twin_class = ShortRangeAttentionTwin


@keras.saving.register_keras_serializable("isa_tf")
class InterlacedSparseAttention(AttentionModule):
    """Interlaced sparse self-attention (ISA), the whole module.

    A long-range attention, then a short-range one, on one padded map: after both, every position
    has heard every other, for N (Q_h Q_w + P_h P_w) affinities in place of N N. The result is
    concatenated with the input and read out by a 1x1 convolution, normalisation and ReLU.

    Several partitions give the official multi-partition module: one pair of attentions each, all
    concatenated, beside the input widened by a 1x1 convolution to as many channels.

    Args:
        partition: int; pair, as a tuple (P_h, P_w); "auto" for the one with the fewest affinity
            entries on the map at hand; or a list of these, such as `[8, (4, 8)]`. Defaults to 8.
        filters: int, output channels; `None` for as many as the input has. Defaults to `None`.
        key_filters: int, channels K of query and key; `None` for half of `filters`. Defaults to
            `None`.
        order: "long_short", "short_long", or one half alone: "long", "short". Defaults to
            "long_short".
        depth: int, how many times the order is run through, each with weights of its own.
            Defaults to 1.
        mask_padding: bool. `True` leaves a key out where it has heard nothing of the image: in the
            first attention the padded positions, afterwards those whose whole group was padding.
            `False` attends to the padded zeros, as published weights expect. Defaults to `True`.
        dropout: float, channel-wise (spatial) dropout of the output. Defaults to 0.
        fuse: bool, whether the input is concatenated and read out; `False` returns the bare
            attentions. Defaults to `True`.
        jit_compile: bool, whether XLA compiles the attention proper. Defaults to `False`.
        activation: name or callable, after the normalisations. Defaults to "relu".
        epsilon: float, of the normalisations. Defaults to 1e-5.
        momentum: float, of the normalisations, in Keras's sense. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.
        residual: bool, whether what is read out, without activation and by a normalisation whose
            scale begins at zero, is added to the input; needs `fuse`. Defaults to `None`, `False`.

    Call arguments:
        inputs: feature map (B, H, W, C), any H and W.
        training: bool.
        return_affinity: bool, whether to return (output, affinities): a list of the affinities of
            all attentions in the order they ran, each float32 (B, groups, positions, positions);
            rows are queries.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for a partition, filters, key_filters or depth below 1, an unknown order,
            residual without fusion or with other filters than the input's, or an input that is no
            map.

    Example:

    >>> y = InterlacedSparseAttention(partition=8)(keras.random.normal((2, 33, 17, 16)))
    >>> y.shape
    TensorShape([2, 33, 17, 16])

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273.
    """

    both_forms = True
    attention_layers = {ops.LONG: LongRangeAttention, ops.SHORT: ShortRangeAttention}

    def __init__(
        self,
        partition=8,
        filters=None,
        key_filters=None,
        order="long_short",
        depth=1,
        mask_padding=True,
        fuse=True,
        jit_compile=False,
        **kwargs,
    ):
        super().__init__(filters, **kwargs)
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        check_positive(depth=depth)
        if self.residual and not fuse:
            raise ValueError("residual=True needs fuse=True: it is the fusion that begins at zero")
        if isinstance(partition, list) and not partition:
            raise ValueError("partition is an empty list")
        partitions = partition if isinstance(partition, list) else [partition]
        self.partitions = [check_partition(p) for p in partitions]
        self.key_filters = key_filters
        self.order = order
        self.depth = depth
        self.mask_padding = mask_padding
        self.fuse = fuse
        self.jit_compile = jit_compile
        steps = [kind for _ in range(depth) for kind in ORDERS[order]]
        # One flat list, because Keras saves no lists of lists.
        self.attentions = [
            self.attention_layers[kind](
                partition,
                filters=filters,
                key_filters=key_filters,
                mask_padding=mask_padding,
                jit_compile=jit_compile,
                name=f"branch{i + 1}_{kind}{step // len(ORDERS[order]) + 1}",
                **self.norm_arguments,
            )
            for i, partition in enumerate(self.partitions)
            for step, kind in enumerate(steps)
        ]
        self._steps = len(steps)

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[-1]
        filters = self.filters or channels
        for branch in self._branches():
            width = channels
            for layer in branch:
                layer.build((None, None, None, width))
                width = filters
        gathered = filters * len(self.partitions)
        self.widen = self.fusion = None
        if self.fuse:
            if len(self.partitions) > 1:
                self.widen = self.conv_norm("widen", gathered, channels)
                channels = gathered
            self.fusion = self.read_out_conv("fusion", filters, gathered + channels)

    def _branches(self):
        """The attentions that follow each other on one partition, a list for each."""
        n = self._steps
        return [self.attentions[i : i + n] for i in range(0, len(self.attentions), n)]

    def call(self, inputs, training=None, return_affinity=False):
        size = ops.spatial_size(inputs)
        maps, affinities = [], []
        for branch in self._branches():
            partition = branch[0].resolve_partition(size)
            x, offset, heard = pad_and_mask(inputs, partition, self.mask_padding)
            for layer in branch:
                x, heard, affinity = layer.attend(x, partition, heard, training)
                affinities.append(affinity)
            maps.append(ops.crop(x, offset, size))
        if self.fusion is not None:
            maps.append(inputs if self.widen is None else self.widen(inputs, training=training))
        x = maps[0] if len(maps) == 1 else tf.concat(maps, axis=-1)
        if self.fusion is not None:
            x = self.fusion(x, training=training)
        x = self.finish(inputs, x, training)
        return (x, affinities) if return_affinity else x

    def compute_output_shape(self, input_shape):
        filters = self.filters or input_shape[-1]
        return (*input_shape[:-1], filters if self.fuse else filters * len(self.partitions))

    def get_config(self):
        return {
            **super().get_config(),
            # Always a list of partitions: a lone pair would come back from JSON as one.
            "partition": list(self.partitions),
            "key_filters": self.key_filters,
            "order": self.order,
            "depth": self.depth,
            "mask_padding": self.mask_padding,
            "fuse": self.fuse,
            "jit_compile": self.jit_compile,
        }


@keras.saving.register_keras_serializable("isa_tf")
class InterlacedSparseAttentionTwin(ModuleTwin, InterlacedSparseAttention):
    """The twin of `InterlacedSparseAttention`, whose arguments it has."""

    twin_arguments = AttentionTwin.twin_arguments
    attention_layers = {ops.LONG: LongRangeAttentionTwin, ops.SHORT: ShortRangeAttentionTwin}


InterlacedSparseAttention.twin_class = InterlacedSparseAttentionTwin
