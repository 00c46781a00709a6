"""The self-attention block that every attention here repeats inside its groups."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from isa_tf import ops, runtime
from isa_tf.hints import Array, Length, Level, Levels, MapSize, Partition, Radices, Shape
from isa_tf.layers import twin
from isa_tf.layers.conv import as_float64
from isa_tf.layers.fused import ConvBiasAct
from isa_tf.layers.module import AttentionModule, ModuleTwin, check_positive
from isa_tf.layers.position import PositionBias

AUTO = "auto"
CONTEXT_NORMS = ("batch", "map")


# Of a module, from the first attention to the last.
ORDERS = ("long_short", "short_long", "long", "short")


def check_order(order: str) -> None:
    """Raises ValueError for an order that is none."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")


def ordered_levels(order: str, levels: int) -> list[Level]:
    """The levels that an order runs through: numbers, 0 for the longest range, or names of two."""
    along: list[Level] = [ops.LONG, ops.SHORT] if levels == 2 else [*range(levels)]
    runs = {"long_short": along, "short_long": along[::-1], "long": along[:1], "short": along[-1:]}
    return runs[order]


def check_levels(levels: Levels, auto: bool = False) -> None:
    """Raises ValueError for anything but an int from 2, or "auto" where that may be."""
    if levels == AUTO and auto:
        return
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 2:
        known = 'an int of at least 2 or "auto"' if auto else "an int of at least 2"
        raise ValueError(f"levels must be {known}, got {levels!r}")


def check_partition(partition: Any, levels: Any = 2) -> Any:
    """A partition of so many levels: a pair of ints, a tuple of such pairs, or "auto".

    An int, and a pair, is every finer digit of more levels alike. Raises ValueError for anything
    else, and for pairs that are not one fewer than the levels.
    """
    if partition == AUTO:
        return AUTO
    if levels == AUTO:
        raise ValueError(f'levels="auto" needs partition="auto", got {partition!r}')
    sequences = (tuple, list)
    alike = not isinstance(partition, sequences) or not any(
        isinstance(p, sequences) for p in partition
    )
    pairs = [(p, p) if isinstance(p, int) else p for p in ([partition] if alike else partition)]
    for pair in pairs:
        if not (
            isinstance(pair, sequences)
            and len(pair) == 2
            and all(isinstance(p, int) and not isinstance(p, bool) and p > 0 for p in pair)
        ):
            raise ValueError(
                'a partition is a positive int, a pair of them, pairs coarse to fine, or "auto", '
                f"got {partition!r}"
            )
    pairs = [tuple(pair) for pair in pairs] * (levels - 1 if alike else 1)
    if len(pairs) != levels - 1:
        raise ValueError(
            f"a partition of {levels} levels has {levels - 1} pairs, got {partition!r}"
        )
    return pairs[0] if levels == 2 else tuple(pairs)


def is_whole(partition: Radices) -> bool:
    """Whether a partition is known to leave the map one group, whose level 0 is dense attention."""
    radices = [p for pair in ops.partition_digits(partition) for p in pair]
    return all(isinstance(p, int) and p == 1 for p in radices)


def grouped(x: tf.Tensor, partition: Radices, level: Level) -> tf.Tensor:
    """The groups of a map that its partition divides, one beside the other: (B, G, N, C)."""
    count, height, width = ops.group_shape(ops.spatial_size(x), partition, level)
    groups = ops.to_groups(x, partition, level)
    return tf.reshape(groups, (-1, count, height * width, x.shape[-1]))


def pad_and_mask(
    inputs: tf.Tensor, partition: Radices, mask_padding: bool
) -> tuple[tf.Tensor, tuple[Length, Length], ops.PaddingMask | None]:
    """Pads a map to its partition.

    Returns:
        (padded, offset, padding_mask): the map, where the image begins in it, and the
        `ops.PaddingMask` of the image, `None` where nothing is to be masked.
    """
    padded, offset = ops.pad_to_partition(inputs, partition)
    if padded is inputs or not mask_padding:
        return padded, offset, None
    size = ops.spatial_size(inputs)
    return padded, offset, ops.PaddingMask.of_image(offset, size, ops.spatial_size(padded))


def attention_arguments(layer: Any) -> dict[str, Any]:
    """The arguments that attentions have in common with modules of them, as a layer has them."""
    names = (
        *("key_filters", "mask_padding", "jit_compile", "num_heads"),
        *("query_scale", "key_initializer", "position_bias", "context_norm"),
    )
    return {name: getattr(layer, name) for name in names}


def attention_config(layer: Any) -> dict[str, Any]:
    """`attention_arguments` as a config has them: an initializer is what JSON can hold."""
    arguments = attention_arguments(layer)
    if not isinstance(arguments["key_initializer"], str):
        initializer = keras.initializers.get(arguments["key_initializer"])
        arguments["key_initializer"] = keras.initializers.serialize(initializer)
    return arguments


@keras.saving.register_keras_serializable("isa_tf")
class SelfAttention2D(AttentionModule):
    """Dense self-attention: every position of a map attends to every other.

    Query and key are two 1x1 convolutions each with normalisation and ReLU, the value is one linear
    1x1 convolution, the affinity is softmax(q k^T / sqrt(K)), and a 1x1 convolution with
    normalisation and ReLU reads out what was gathered. N = H W positions cost N x N affinities;
    `LongRangeAttention` and `ShortRangeAttention` are this block inside small groups.

    Args:
        partition: accepted so that the attention layers can stand in for each other; the whole map
            is one group here. Defaults to 1.
        filters: int, output channels; `None` for as many as the input has. Defaults to `None`.
        key_filters: int, channels K of query and key; `None` for half of `filters`. Defaults to
            `None`.
        mask_padding: bool. `True` leaves a key out where it has heard nothing of the image, only
            padding; `False` attends to the padded zeros, as published weights expect. Without
            effect where the partition divides the map. Defaults to `True`.
        dropout: float, channel-wise (spatial) dropout of the output. Defaults to 0.
        jit_compile: bool, whether XLA compiles the attention proper. Defaults to `False`.
        activation: name or callable, after the normalisations. Defaults to "relu".
        epsilon: float, of the normalisations. Defaults to 1e-5.
        momentum: float, of the normalisations, in Keras's sense. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.
        query_scale: float, what the scale of the last query normalisation begins as: the larger,
            the sharper the first affinities, which of freshly drawn weights are nearly uniform.
            Defaults to 1.
        key_initializer: name or initializer, of the kernels of query and key, such as
            "orthogonal"; without a seed each of them gets other numbers. Defaults to "he_normal".
        position_bias: bool, whether the logits of the affinity gain by where the key lies from the
            query, see `PositionBias`. Defaults to `False`.
        num_heads: int, attentions side by side, each of as many of the channels of query, key and
            value. Defaults to 1, the paper's.
        context_norm: what normalises the gathered values behind the output convolution: "batch";
            "map", by the mean and variance of each image's map alone, padding included (instance
            normalisation), in inference too; or `None`, nothing but a bias. Defaults to "batch".

    Call arguments:
        inputs: feature map (B, H, W, C), any H and W.
        training: bool.
        return_affinity: bool, whether to return (output, affinity) with the affinity as float32
            (B, groups, positions, positions), the mean of its heads; rows are queries.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for a partition, filters, key_filters or num_heads below 1, channels that the
            heads do not divide, an unknown context_norm, or an input that is no map.

    Example:

    >>> y = SelfAttention2D(key_filters=4)(keras.random.normal((1, 6, 6, 8)))
    >>> y.shape
    TensorShape([1, 6, 6, 8])

    Reference: Wang et al., "Non-local Neural Networks", CVPR 2018; in this form Yuan et al.,
    "OCNet: Object Context for Semantic Segmentation", IJCV 2021.
    """

    kind: int | str = ops.LONG  # with the partition below: one group, the whole map
    levels: Levels = 2

    def __init__(
        self,
        partition: Partition = 1,
        filters: int | None = None,
        key_filters: int | None = None,
        mask_padding: bool = True,
        jit_compile: bool = False,
        query_scale: float = 1.0,
        key_initializer: str | keras.initializers.Initializer = "he_normal",
        position_bias: bool = False,
        num_heads: int = 1,
        context_norm: str | None = "batch",
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, **kwargs)
        check_positive(key_filters=key_filters, num_heads=num_heads)
        if context_norm not in (*CONTEXT_NORMS, None):
            raise ValueError(
                f"context_norm must be {', '.join(CONTEXT_NORMS)} or None, got {context_norm!r}"
            )
        if query_scale <= 0:
            raise ValueError(f"query_scale must be above 0, got {query_scale}")
        self.query_scale = query_scale
        self.key_initializer = key_initializer
        self.position_bias = position_bias
        self.num_heads = num_heads
        self.context_norm = context_norm
        self.partition = check_partition(partition, self.levels)
        self.key_filters = key_filters
        self.mask_padding = mask_padding
        self.jit_compile = jit_compile

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels = input_shape[-1]
        filters = self.filters or channels
        width = self.key_filters or max(1, filters // 2)
        for what, count in (("filters", filters), ("key_filters", width)):
            if count % self.num_heads:
                raise ValueError(
                    f"{self.name} has {self.num_heads} heads, which do not divide {what} {count}"
                )
        scaled = {"gamma_initializer": keras.initializers.Constant(self.query_scale)}
        self.query, self.key = (
            [
                self._compared_by(f"{of}1", width, channels),
                self._compared_by(f"{of}2", width, width, **last),
            ]
            for of, last in (("query", scaled), ("key", {}))
        )
        self.bias = None
        if self.position_bias:
            self.bias = PositionBias(num_heads=self.num_heads, dtype="float32", name="bias")
            self.bias.build()
        self.build_read_out(channels, filters)

    def _compared_by(self, name, width, reads, **arguments):
        """A convolution that queries or keys are made by."""
        drawn = self.key_initializer
        if isinstance(drawn, keras.initializers.Initializer):
            drawn = drawn.clone()  # one initializer gives the same numbers each time
        return self.conv_norm(name, width, reads, kernel_initializer=drawn, **arguments)

    def build_read_out(self, channels: int, filters: int) -> None:
        """Makes what the values are made by, and what reads out of those that were gathered."""
        self.value = self.linear("value", filters, channels)
        self.output_norm = None
        if self.context_norm == "batch":
            self.output_conv = self.conv_norm("output", filters, filters)
        elif self.context_norm == "map":
            self.output_conv = self.linear("output", filters, filters)
            self.output_norm = keras.layers.GroupNormalization(
                -1, epsilon=self.epsilon, dtype=self.dtype_policy, name="output_norm"
            )
            self.output_norm.build((None, None, None, filters))
        else:
            self.output_conv = ConvBiasAct(
                filters, activation=self.activation, dtype=self.dtype_policy, name="output"
            )
            self.output_conv.build((None, None, None, filters))

    @property
    def reads_out_first(self) -> bool:
        """Whether values may be read out before they are gathered: it comes to the same.

        The weights of an affinity's rows add up to one. But each head has rows of its own, and by
        what a map is normalised is known of what was gathered alone.
        """
        return self.num_heads == 1 and self.context_norm != "map"

    def fill_twin(self, other: keras.layers.Layer) -> None:
        for mine, theirs in zip((*self.query, *self.key), (*other.query, *other.key), strict=True):
            twin.fill_twin(mine, theirs)
        if self.bias is not None:
            twin.fill_twin(self.bias, other.bias)
        if not self.reads_out_first:
            for part in ("value", "output_conv", "output_norm"):
                if getattr(self, part) is not None:
                    twin.fill_twin(getattr(self, part), getattr(other, part))
            return
        read_out = self.output_conv
        kernel, bias = read_out.plain_weights() if self.context_norm is None else read_out.folded()
        other.value.take((as_float64(self.value.kernel)[0, 0] @ kernel[0, 0])[None, None], bias)

    def attend(
        self,
        x: tf.Tensor,
        partition: Radices,
        padding_mask: ops.PaddingMask | None,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, ops.PaddingMask | None, tf.Tensor]:
        """Attention inside the groups of a map that its partition divides.

        Args:
            x: tensor (B, H, W, C).
            partition: (P_h, P_w), dividing (H, W).
            padding_mask: `ops.PaddingMask` of the map, or `None` for no mask.
            training: bool.

        Returns:
            (output, padding_mask, affinity): the map (B, H, W, filters), the mask of its positions
            now, and the affinity (B, groups, positions, positions).
        """
        size = ops.spatial_size(x)
        groups = grouped(x, partition, self.kind)
        mask = None if padding_mask is None else padding_mask.key_mask(partition, self.kind)
        groups = self.refuse_too_large(groups, partition, self.kind, size)
        query, key = self.queries_and_keys(groups, training)
        context, affinity = self.attend_groups(
            query,
            key,
            lambda: self.own(self.value(groups)),
            mask,
            self.is_compiled(partition),
            bias=self.bias_of(partition, self.kind, size),
        )
        output = self.read_out(context, training)
        output = ops.from_groups(output, partition, self.kind, size)
        affinity = self.mean_of_heads(affinity)
        return output, padding_mask and padding_mask.after(partition, self.kind), affinity

    def is_compiled(self, partition: Radices) -> bool:
        """Whether XLA compiles the attention proper of this partition."""
        return self.jit_compile

    def refuse_too_large(
        self, groups: tf.Tensor, partition: Radices, level: Level, size: MapSize
    ) -> tf.Tensor:
        """The groups (B, G, N, C), unless their affinity does not fit into memory."""
        count, height, width = ops.group_shape(size, partition, level)
        affinity = (count * self.num_heads, height * width, height * width)
        if not is_whole(partition) and any(map(tf.is_tensor, affinity)):
            return groups  # small for its map, whatever size that has
        batch = groups.shape[0]
        shape = (tf.shape(groups)[0] if batch is None else batch, *affinity)
        return runtime.refuse_too_large(shape, groups)

    def queries_and_keys(
        self, x: tf.Tensor, training: bool | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(query, key): what the positions of maps, or of groups, are compared by."""
        query, key = x, x
        for layer in self.query:
            query = layer(query, training=training)
        for layer in self.key:
            key = layer(key, training=training)
        return self.own(query), self.own(key)

    def bias_of(self, partition: Radices, level: Level, size: MapSize) -> tf.Tensor | None:
        """The position bias of the groups of a level of a map; `None` for none."""
        if self.bias is None:
            return None
        _, *group = ops.group_shape(size, partition, level)
        return self.bias.between(group, ops.group_step(partition, level))

    def attend_groups(
        self,
        query: tf.Tensor,
        key: tf.Tensor,
        make_value: Callable[[], tf.Tensor],
        mask: Array | None,
        jit_compile: bool,
        scaled: bool = False,
        bias: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Attention proper, inside groups: the one place of it.

        Args:
            query: tensor (B, G, N, K).
            key: tensor (B, G, N, K).
            make_value: function without arguments that returns the values (B, G, N, filters).
            mask: bools (G, N), False for keys to leave out; or `None`.
            jit_compile: bool, whether XLA compiles it.
            scaled: bool, whether the queries are scaled already, by `ops.scale_queries`.
            bias: of `bias_of`.

        Returns:
            (context, affinity): (B, G, N, filters) and (B, G num_heads, N, N).
        """
        query, key = self._of_heads(query), self._of_heads(key)
        if mask is not None and self.num_heads > 1:
            mask = tf.repeat(mask, self.num_heads, axis=0)
        affinity = ops.group_affinity(query, key, mask, jit_compile, scaled, bias)
        # Not before the queries and keys are done with: memory need not hold all three.
        with tf.control_dependencies([affinity]):
            value = make_value()
        return self.gather(affinity, value, jit_compile), affinity

    def gather(self, affinity: tf.Tensor, value: tf.Tensor, jit_compile: bool) -> tf.Tensor:
        """What each head's affinity gathers of its share of the values (B, G, N, C)."""
        context = ops.gather_values(affinity, self._of_heads(value), jit_compile)
        return context if self.num_heads == 1 else ops.merge_heads(context, self.num_heads)

    def _of_heads(self, x):
        return x if self.num_heads == 1 else ops.split_heads(x, self.num_heads)

    def mean_of_heads(self, affinity: tf.Tensor) -> tf.Tensor:
        """(B, G num_heads, N, N) -> (B, G, N, N)."""
        if self.num_heads == 1:
            return affinity
        return ops.mean_of_heads(affinity, self.num_heads)

    def read_out(self, context: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """What is made of the gathered values."""
        if self.output_norm is None:
            return self.output_conv(context, training=training)
        x = self.own(self.output_norm(self.output_conv(context)))
        return self.own(self.activation(x))

    def resolve_partition(self, size: MapSize) -> Radices:
        """The partition for a map of `size` (H, W): (P_h, P_w), or pairs coarse to fine."""
        return (1, 1)

    def kinds_of(self, partition: Radices) -> list[Level]:
        """The levels of the attentions of a partition, in the order they run."""
        return [self.kind]

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, return_affinity: bool = False
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        size = ops.spatial_size(inputs)
        partition = self.resolve_partition(size)
        x, offset, padding_mask = pad_and_mask(inputs, partition, self.mask_padding)
        x, _, affinity = self.attend(x, partition, padding_mask, training)
        x = self.own(self.drop(ops.crop(x, offset, size), training=training))
        return (x, affinity) if return_affinity else x

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "partition": self.partition,
            **attention_config(self),
        }


class SparseAttention(SelfAttention2D):
    """The base of the attentions inside the groups of a partition, which "auto" chooses."""

    def __init__(self, partition: Partition = 8, **kwargs: Any) -> None:
        super().__init__(partition, **kwargs)

    def resolve_partition(self, size: MapSize) -> Radices:
        if self.partition != AUTO:
            return self.partition
        height, width = size
        return ops.best_partition(height, width, self.levels)


class AttentionTwin(ModuleTwin):
    """What makes the class of an attention that of its twin.

    The weights of an affinity's rows add up to one: what the output convolution does before its
    activation may as well be done to the values before they are gathered, and there it is one
    matrix with the value's own. XLA compiles the attention inside groups alone: the products of
    many small matrices are its strength, and those of one large matrix are not.
    """

    twin_arguments = (*ModuleTwin.twin_arguments, "jit_compile")
    jit_compile: bool  # of the attention's class, as is the other
    activation: Callable[[tf.Tensor], tf.Tensor]
    reads_out_first: bool

    def build_read_out(self, channels: int, filters: int) -> None:
        if not self.reads_out_first:
            super().build_read_out(channels, filters)  # type: ignore[misc]
            return
        self.value = self.conv_norm("value", filters, channels, activation=None)

    def fill_twin(self, other: keras.layers.Layer) -> None:
        twin.fill_parts(self, other)

    def is_compiled(self, partition: Radices) -> bool:
        return self.jit_compile and not is_whole(partition)

    def read_out(self, context: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not self.reads_out_first:
            return super().read_out(context, training)  # type: ignore[misc]
        return self.activation(context)


@keras.saving.register_keras_serializable("isa_tf")
class SelfAttention2DTwin(AttentionTwin, SelfAttention2D):
    """The twin of `SelfAttention2D`, whose arguments it has."""


SelfAttention2D.twin_class = SelfAttention2DTwin
