"""Dense self-attention whose affinity is a product of sparse ones, literally."""

import functools
from typing import Any

import keras
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Level, Levels, Partition, Radices
from isa_tf.layers.self_attention import (
    AUTO,
    AttentionTwin,
    SparseAttention,
    check_levels,
    check_order,
    ordered_levels,
    pad_and_mask,
)


@keras.saving.register_keras_serializable("isa_tf")
class FactorizedAttention(SparseAttention):
    """Self-attention by A_S A_L in place of the dense affinity A: one query, key, value, output.

    The interlaced attentions of the paper are two blocks, each with projections of its own. This is
    one block: query, key and value are made of the map once, the values are gathered by the
    long-range affinity A_L, what comes of it by the short-range affinity A_S of the same queries
    and keys, and read out once. (Of more levels: by each in turn.) Every position hears every
    other.

    A position that passes on what it has heard looks as it did, if keys are of the map that came
    in: the next level cannot attend to it for that, and weighs it like any other. With two levels a
    network learns to make do; with three it learned nothing on images where only context helps
    (docs/levels.md). With `carry_keys=True` every level gathers keys as it gathers values, so that
    the next one attends to what was heard. It costs no weights, and a product more a level.

    A map that the partition does not divide is padded with zeros after the projections: the
    normalisations see the map alone, and a padded position, whose query is zero, weighs all
    positions of its group alike.

    Args:
        partition: int or pair (P_h, P_w), the radices of every digit but the coarsest; a tuple of
            levels - 1 such pairs, coarse to fine; or "auto" for those with the fewest affinity
            entries on the map at hand. Defaults to 8.
        levels: int, how many ranges there are; or "auto" for the number that costs least on the map
            at hand, with `partition="auto"`. Defaults to 2.
        order: "long_short", from the longest range to the shortest; "short_long"; or one alone:
            "long", "short". Defaults to "long_short".
        carry_keys: bool, whether keys are gathered with the values for the next level. Defaults to
            `None`: where there are more than two levels, or "auto".
        **kwargs: those of `SelfAttention2D`, with the same meaning.

    Call arguments:
        inputs: feature map (B, H, W, C), any H and W.
        training: bool.
        return_affinity: bool, whether to return (output, affinities): a list of the affinities in
            the order they were applied, each float32 (B, groups, positions, positions); rows are
            queries.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for fewer than two levels, a partition of another number of levels, an unknown
            order, a partition, filters or key_filters below 1, or an input that is no map.

    Example:

    >>> y = FactorizedAttention("auto", levels=3)(keras.random.normal((1, 20, 13, 8)))
    >>> y.shape
    TensorShape([1, 20, 13, 8])

    Reference: the factorisation is that of Huang et al., "Interlaced Sparse Self-Attention for
    Semantic Segmentation", arXiv 1907.12273, section 3.
    """

    def __init__(
        self,
        partition: Partition = 8,
        levels: Levels = 2,
        order: str = "long_short",
        carry_keys: bool | None = None,
        **kwargs: Any,
    ) -> None:
        check_levels(levels, auto=True)
        check_order(order)
        self.levels = levels
        self.order = order
        self.carry_keys = carry_keys
        # Of "auto" always: one set of weights, whatever the map at hand.
        several = not isinstance(levels, int) or levels > 2
        self.carries = several if carry_keys is None else carry_keys
        super().__init__(partition, **kwargs)

    def kinds_of(self, partition: Radices) -> list[Level]:
        return ordered_levels(self.order, len(ops.partition_digits(partition)) + 1)

    def attend_levels(
        self,
        x: tf.Tensor,
        partition: Radices,
        training: bool | None = None,
        return_affinity: bool = False,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Attention at one level after the other.

        Args:
            x: tensor (B, H, W, C), of any size.
            partition: a pair, or pairs coarse to fine.
            training: bool.
            return_affinity: bool, whether the affinities of all levels are wanted.

        Returns:
            (output, affinities): the map (B, H, W, filters), and of each attention the affinity
            (B, groups, positions, positions).
        """
        size, levels = ops.spatial_size(x), self.kinds_of(partition)
        if not ops.is_divided(size, partition):
            query, key = self.queries_and_keys(x, training)
            value = self.own(self.value(x))
            context, affinities = self.gather_levels(query, key, value, partition, return_affinity)
            return self.read_out(context, training), affinities
        # What is between this and the end is of single positions or of groups: nothing needs the
        # map, and the input is one map to regroup, its projections are two or three.
        groups = ops.to_groups(x, partition, levels[0])
        query, key = self.queries_and_keys(groups, training)
        value = self.own(self.value(groups))
        context, affinities = self._gather(query, key, value, None, partition, size)
        output = self.read_out(context, training)
        return ops.from_groups(output, partition, levels[-1], size), affinities

    def gather_levels(
        self,
        query: tf.Tensor,
        key: tf.Tensor,
        value: tf.Tensor,
        partition: Radices,
        return_affinity: bool = False,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """(context, affinities) of maps of queries, keys and values, of any size."""
        size, levels = ops.spatial_size(value), self.kinds_of(partition)
        query, offset, padding_mask = pad_and_mask(query, partition, self.mask_padding)
        key, _ = ops.pad_to_partition(key, partition)
        maps = query, key, self.pad_values(value, partition)
        padded = ops.spatial_size(query)
        query, key, value = (ops.to_groups(x, partition, levels[0]) for x in maps)
        context, affinities = self._gather(
            query, key, value, padding_mask, partition, padded, return_affinity
        )
        context = ops.from_groups(context, partition, levels[-1], padded)
        return ops.crop(context, offset, size), affinities

    def pad_values(self, value: tf.Tensor, partition: Radices) -> tf.Tensor:
        """A map of values, padded."""
        return ops.pad_to_partition(value, partition)[0]

    def _gather(self, query, key, value, padding_mask, partition, size, return_affinity=True):
        """(context, affinities): of groups of the first level that runs, groups of the last."""
        levels, affinities = self.kinds_of(partition), []
        query = ops.scale_queries(query, self.num_heads)  # once for all levels
        at = levels[0]  # the level that these are the groups of
        for level in levels:
            attend = functools.partial(
                self._attend_level, query, key, value, padding_mask, partition, size, at, level
            )
            _, *radices = ops.group_shape(size, partition, level)
            unsure = self.levels == AUTO and level not in (levels[0], levels[-1])
            if unsure and any(map(tf.is_tensor, radices)) and not return_affinity:
                # Maps of some sizes have no use for this level: it has groups of one position.
                there_and_back = functools.partial(
                    self._there_and_back, attend, partition, size, at, level
                )
                keep = functools.partial(tf.nest.map_structure, tf.identity, (key, value))
                key, value = tf.cond(tf.reduce_prod(radices) > 1, there_and_back, keep)
            else:
                query, key, value, affinity = attend()
                affinities.append(self.mean_of_heads(affinity))
                at = level
            padding_mask = padding_mask and padding_mask.after(partition, level)
        return value, affinities

    def _attend_level(self, query, key, value, padding_mask, partition, size, at, level):
        """(query, key, context, affinity) of the groups of `level`, of such of the level `at`.

        The keys are those for the next level.
        """
        count, height, width = ops.group_shape(size, partition, level)

        def groups_of(x):
            x = ops.regroup(x, partition, at, level, size)
            return tf.reshape(x, (-1, count, height * width, x.shape[-1]))

        query, key = groups_of(query), groups_of(key)
        mask = None if padding_mask is None else padding_mask.key_mask(partition, level)
        query = self.refuse_too_large(query, partition, level, size)
        compiled = self.is_compiled(partition)
        context, affinity = self.attend_groups(
            query,
            key,
            lambda: groups_of(value),
            mask,
            compiled,
            scaled=True,
            bias=self.bias_of(partition, level, size),
        )
        if self.carries and level != self.kinds_of(partition)[-1]:
            key = self.gather(affinity, key, compiled)
        return query, key, context, affinity

    def _there_and_back(self, attend, partition, size, at, level):
        """Keys and what `attend` gathers in the groups of `level`, as groups of the level `at`."""
        _, *gathered, _ = attend()
        return tuple(ops.regroup(x, partition, level, at, size) for x in gathered)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, return_affinity: bool = False
    ) -> tf.Tensor | tuple[tf.Tensor, list[tf.Tensor]]:
        partition = self.resolve_partition(ops.spatial_size(inputs))
        x, affinities = self.attend_levels(inputs, partition, training, return_affinity)
        x = self.own(self.drop(x, training=training))
        return (x, affinities) if return_affinity else x

    def get_config(self) -> dict[str, Any]:
        own = {"levels": self.levels, "order": self.order, "carry_keys": self.carry_keys}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("isa_tf")
class FactorizedAttentionTwin(AttentionTwin, FactorizedAttention):
    """The twin of `FactorizedAttention`, whose arguments it has."""

    def pad_values(self, value: tf.Tensor, partition: Radices) -> tf.Tensor:
        padded = super().pad_values(value, partition)
        if padded is value or self.mask_padding or not self.reads_out_first:
            return padded
        # Zeros that are attended to: the values have the output's bias in them, so must padding.
        inside, _ = ops.pad_to_partition(tf.ones_like(value[:1, :, :, :1]), partition)
        return padded + (1 - inside) * tf.cast(self.value.bias, padded.dtype)


FactorizedAttention.twin_class = FactorizedAttentionTwin
