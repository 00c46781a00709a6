"""Interlaced sparse self-attention: from long ranges to short ones, each in small groups."""

from typing import Any

import keras
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Levels, Partition, Shape
from isa_tf.layers.factorized import FactorizedAttention, FactorizedAttentionTwin
from isa_tf.layers.module import AttentionModule, ModuleTwin, check_positive
from isa_tf.layers.self_attention import (
    AUTO,
    AttentionTwin,
    SparseAttention,
    attention_arguments,
    attention_config,
    check_levels,
    check_order,
    check_partition,
    ordered_levels,
    pad_and_mask,
)


@keras.saving.register_keras_serializable("isa_tf")
class RangeAttention(SparseAttention):
    """Self-attention at one of several ranges, from the whole map to the neighbours.

    A partition of k levels writes the row, and the column, of a position with k digits (see
    `isa_tf.ops`); positions that differ in one of these alone form a group. After an attention at
    each level, in any order, every position has heard every other. With two levels these are
    `LongRangeAttention` and `ShortRangeAttention`.

    Args:
        partition: int or pair (P_h, P_w), the radices of every digit but the coarsest; a tuple of
            levels - 1 such pairs, coarse to fine; or "auto" for those with the fewest affinity
            entries of all levels together on the map at hand. Defaults to 8.
        level: int, from 0, the longest range, to levels - 1, the shortest. Defaults to 0.
        levels: int, how many there are. Defaults to 2.
        **kwargs: those of `SelfAttention2D`, with the same meaning.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for fewer than two levels, a level that is none of them, a partition of another
            number of levels, a partition, filters or key_filters below 1, or an input that is no
            map.

    Example:

    >>> y = RangeAttention(4, level=1, levels=3)(keras.random.normal((1, 20, 13, 8)))
    >>> y.shape
    TensorShape([1, 20, 13, 8])

    Reference: after Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273, whose two levels these are more of.
    """

    def __init__(
        self, partition: Partition = 8, level: int = 0, levels: int = 2, **kwargs: Any
    ) -> None:
        check_levels(levels)
        if isinstance(level, bool) or level not in range(levels):
            raise ValueError(f"level must be an int from 0 to {levels - 1}, got {level!r}")
        self.kind = level
        self.levels = levels
        super().__init__(partition, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "level": self.kind, "levels": self.levels}


@keras.saving.register_keras_serializable("isa_tf")
class RangeAttentionTwin(AttentionTwin, RangeAttention):
    """The twin of `RangeAttention`, whose arguments it has."""


RangeAttention.twin_class = RangeAttentionTwin


@keras.saving.register_keras_serializable("isa_tf")
class LongRangeAttention(SparseAttention):
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
class ShortRangeAttention(SparseAttention):
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


class _ZeroInputs(keras.initializers.Initializer):
    """A kernel as usual, but for zeros where it reads the first channels of its input."""

    def __init__(self, count):
        self.count = count

    def __call__(self, shape, dtype=None):
        kernel = keras.initializers.HeNormal()(shape, dtype)
        read = keras.ops.arange(shape[-2])[:, None] >= self.count
        return kernel * keras.ops.cast(read, kernel.dtype)

    def get_config(self):
        return {"count": self.count}


@keras.saving.register_keras_serializable("isa_tf")
class InterlacedSparseAttention(AttentionModule):
    """Interlaced sparse self-attention (ISA), the whole module.

    A long-range attention, then a short-range one, on one padded map: after both, every position
    has heard every other, for N (Q_h Q_w + P_h P_w) affinities in place of N N. The result is
    concatenated with the input and read out by a 1x1 convolution, normalisation and ReLU.

    Beyond the paper, `levels=3` puts a range between these (see `RangeAttention`): about 3 N^(4/3)
    affinities in place of 2 N^(3/2). With `share_projections=True` query, key and value are made
    once for all levels (see `FactorizedAttention`), which are most of the module's operations.

    Several partitions give the official multi-partition module: one pair of attentions each, all
    concatenated, beside the input widened by a 1x1 convolution to as many channels.

    Args:
        partition: int; pair, as a tuple (P_h, P_w); "auto" for the one with the fewest affinity
            entries on the map at hand; or a list of these, such as `[8, (4, 8)]`. Of more than two
            levels, an int and a pair are every finer digit alike, and a tuple of levels - 1 pairs
            tells each, coarse to fine. Defaults to 8.
        filters: int, output channels; `None` for as many as the input has. Defaults to `None`.
        key_filters: int, channels K of query and key; `None` for half of `filters`. Defaults to
            `None`.
        order: "long_short", from the longest range to the shortest; "short_long"; or one alone:
            "long", "short". Defaults to "long_short".
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
        levels: int, how many ranges there are; or "auto" for the number that costs least on the map
            at hand, which needs `partition="auto"` and `share_projections=True` (else each level
            has weights). Defaults to 2, the paper's.
        share_projections: bool, whether all levels share query, key, value and output. Defaults to
            `False`, as in the paper.
        carry_keys: bool, of shared projections, see `FactorizedAttention`. Defaults to `None`:
            where there are more than two levels.
        query_scale: float, see `SelfAttention2D`. Defaults to 1.
        key_initializer: see `SelfAttention2D`. Defaults to "he_normal".
        position_bias: bool, see `SelfAttention2D`. Defaults to `False`.
        zero_context: bool, whether the fusion begins by reading nothing of what was gathered, so
            that a fresh module is a 1x1 convolution of its input. Defaults to `False`.
        num_heads: int, see `SelfAttention2D`. Defaults to 1.
        context_norm: "batch", "map" or `None`, see `SelfAttention2D`. Defaults to "batch".

    Call arguments:
        inputs: feature map (B, H, W, C), any H and W.
        training: bool.
        return_affinity: bool, whether to return (output, affinities): a list of the affinities of
            all attentions in the order they ran, each float32 (B, groups, positions, positions);
            rows are queries. (`levels="auto"` may have affinities of groups of one position among
            them, where the map's size is not known.)

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for a partition, filters, key_filters or depth below 1, an unknown order, fewer
            than two levels or a partition of another number of them, `levels="auto"` without what
            it needs, `carry_keys=True` without shared projections, residual without fusion or with
            other filters than the input's, or an input that is no map.

    Example:

    >>> y = InterlacedSparseAttention(partition=8)(keras.random.normal((2, 33, 17, 16)))
    >>> y.shape
    TensorShape([2, 33, 17, 16])

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273.
    """

    both_forms = True
    attention_layers = {ops.LONG: LongRangeAttention, ops.SHORT: ShortRangeAttention}
    range_layer = RangeAttention
    factorized_layer = FactorizedAttention

    def __init__(
        self,
        partition: Partition = 8,
        filters: int | None = None,
        key_filters: int | None = None,
        order: str = "long_short",
        depth: int = 1,
        mask_padding: bool = True,
        fuse: bool = True,
        jit_compile: bool = False,
        levels: Levels = 2,
        share_projections: bool = False,
        carry_keys: bool | None = None,
        query_scale: float = 1.0,
        key_initializer: str | keras.initializers.Initializer = "he_normal",
        position_bias: bool = False,
        zero_context: bool = False,
        num_heads: int = 1,
        context_norm: str | None = "batch",
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, **kwargs)
        check_order(order)
        check_positive(depth=depth)
        check_levels(levels, auto=True)
        if levels == AUTO and not share_projections:
            raise ValueError(
                'levels="auto" needs share_projections=True: else each level has weights'
            )
        if carry_keys and not share_projections:
            raise ValueError(
                "carry_keys=True needs share_projections=True: else each level has keys of its own"
            )
        if self.residual and not fuse:
            raise ValueError("residual=True needs fuse=True: it is the fusion that begins at zero")
        if zero_context and not fuse:
            raise ValueError("zero_context=True needs fuse=True: the fusion is what begins so")
        if isinstance(partition, list) and not partition:
            raise ValueError("partition must be one, or a list of at least one, got an empty list")
        partitions = partition if isinstance(partition, list) else [partition]
        self.partitions = [check_partition(p, levels) for p in partitions]
        self.key_filters = key_filters
        self.order = order
        self.depth = depth
        self.mask_padding = mask_padding
        self.fuse = fuse
        self.jit_compile = jit_compile
        self.levels = levels
        self.share_projections = share_projections
        self.carry_keys = carry_keys
        self.query_scale = query_scale
        self.key_initializer = key_initializer
        self.position_bias = position_bias
        self.num_heads = num_heads
        self.context_norm = context_norm
        self.zero_context = zero_context
        # One flat list, because Keras saves no lists of lists.
        self.attentions = [
            attention
            for number, partition in enumerate(self.partitions, 1)
            for run in range(1, depth + 1)
            for attention in self._one_run(partition, f"branch{number}", run)
        ]
        self._steps = len(self.attentions) // len(self.partitions)

    def _one_run(self, partition, branch, run):
        """The attentions of one run through the order, on one partition."""
        arguments = {
            "partition": partition,
            "filters": self.filters,
            **attention_arguments(self),
            **self.norm_arguments,
        }
        if self.share_projections:
            shared = {"levels": self.levels, "order": self.order, "carry_keys": self.carry_keys}
            return [self.factorized_layer(**arguments, **shared, name=f"{branch}_shared{run}")]
        levels = ordered_levels(self.order, self.levels)
        if self.levels == 2:
            return [
                self.attention_layers[kind](**arguments, name=f"{branch}_{kind}{run}")
                for kind in levels
            ]
        return [
            self.range_layer(
                **arguments, level=level, levels=self.levels, name=f"{branch}_level{level}_{run}"
            )
            for level in levels
        ]

    def build(self, input_shape: Shape) -> None:
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
            drawn = {}
            if self.zero_context:
                drawn["kernel_initializer"] = _ZeroInputs(gathered)
            self.fusion = self.read_out_conv("fusion", filters, gathered + channels, **drawn)

    def _branches(self):
        """The attentions that follow each other on one partition, a list for each."""
        n = self._steps
        return [self.attentions[i : i + n] for i in range(0, len(self.attentions), n)]

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, return_affinity: bool = False
    ) -> tf.Tensor | tuple[tf.Tensor, list[tf.Tensor]]:
        maps, affinities = [], []
        for branch in self._branches():
            partition = branch[0].resolve_partition(ops.spatial_size(inputs))
            if self.share_projections:
                x, found = inputs, []
                for layer in branch:
                    x, more = layer.attend_levels(x, partition, training, return_affinity)
                    found += more
            else:
                x, found = self._run(branch, inputs, partition, training)
            maps.append(x)
            affinities += found
        if self.fusion is not None:
            maps.append(inputs if self.widen is None else self.widen(inputs, training=training))
        x = maps[0] if len(maps) == 1 else tf.concat([self.own(x) for x in maps], axis=-1)
        if self.fusion is not None:
            x = self.fusion(x, training=training)
        x = self.finish(inputs, x, training)
        return (x, affinities) if return_affinity else x

    def _run(self, branch, x, partition, training):
        """What attentions that follow each other make of a map, and their affinities."""
        size, affinities = ops.spatial_size(x), []
        x, offset, padding_mask = pad_and_mask(x, partition, self.mask_padding)
        for layer in branch:
            x, padding_mask, affinity = layer.attend(x, partition, padding_mask, training)
            affinities.append(affinity)
        return ops.crop(x, offset, size), affinities

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        filters = self.filters or input_shape[-1]
        return (*input_shape[:-1], filters if self.fuse else filters * len(self.partitions))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            # Always a list of partitions: a lone pair would come back from JSON as one.
            "partition": list(self.partitions),
            **attention_config(self),
            "order": self.order,
            "depth": self.depth,
            "fuse": self.fuse,
            "levels": self.levels,
            "share_projections": self.share_projections,
            "carry_keys": self.carry_keys,
            "zero_context": self.zero_context,
        }


@keras.saving.register_keras_serializable("isa_tf")
class InterlacedSparseAttentionTwin(ModuleTwin, InterlacedSparseAttention):
    """The twin of `InterlacedSparseAttention`, whose arguments it has."""

    twin_arguments = AttentionTwin.twin_arguments
    attention_layers = {ops.LONG: LongRangeAttentionTwin, ops.SHORT: ShortRangeAttentionTwin}
    range_layer = RangeAttentionTwin
    factorized_layer = FactorizedAttentionTwin


InterlacedSparseAttention.twin_class = InterlacedSparseAttentionTwin
