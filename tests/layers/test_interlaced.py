"""The attention layers against an independent NumPy module, and what they must mean."""

import functools
import itertools
import json

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from isa_tf import ops
from isa_tf.cost import flops_by_kind
from isa_tf.layers import (
    FactorizedAttention,
    InterlacedSparseAttention,
    LongRangeAttention,
    RangeAttention,
    SelfAttention2D,
    ShortRangeAttention,
)
from isa_tf.ops import partition as partition_ops
from isa_tf.testing import outputs_and_gradients, randomize, relative_error

ORDERS = ["long_short", "short_long", "long", "short"]
masks = pytest.mark.parametrize("mask", [True, False], ids=["masked", "unmasked"])


def a_map(height, width, channels=6, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=(batch, height, width, channels)), "float32")


def made(cls=InterlacedSparseAttention, channels=6, positive=False, **arguments):
    layer = cls(**arguments)
    layer.build((None, None, None, channels))
    randomize(layer, positive=positive)
    return layer


# --- The whole module in NumPy -------------------------------------------------------------------

REFERENCE_CASES = [
    *[((10, 13), {"partition": 4, "order": order}) for order in ORDERS],
    ((12, 8), {"partition": 4}),
    ((9, 7), {"partition": (4, 3), "filters": 5, "key_filters": 4}),
    ((5, 3), {"partition": 8}),
    ((5, 3), {"partition": 8, "order": "short_long"}),
    ((10, 13), {"partition": 4, "depth": 2}),
    ((5, 6), {"partition": (8, 4), "depth": 2, "order": "short_long"}),
    ((7, 10), {"partition": [4, (2, 3)], "key_filters": 4}),
    ((7, 10), {"partition": [4, 16], "filters": 4, "fuse": False}),
    *[((10, 13), {"partition": 2, "levels": 3, "order": order}) for order in ORDERS],
    ((8, 12), {"partition": ((2, 3), (1, 2)), "levels": 3, "filters": 5}),
    ((9, 7), {"partition": [2, ((1, 2), (3, 1), (2, 2))], "levels": 4, "depth": 2}),
    *[((10, 13), {"partition": 4, "share_projections": True, "order": o}) for o in ORDERS],
    ((8, 12), {"partition": 4, "share_projections": True, "depth": 2}),
    ((10, 13), {"partition": 2, "levels": 3, "share_projections": True}),
    ((10, 13), {"partition": 2, "levels": 3, "share_projections": True, "carry_keys": False}),
    ((10, 13), {"partition": 4, "share_projections": True, "carry_keys": True}),
    (
        (7, 10),
        {
            "partition": [((2, 3), (2, 1)), 3],
            "levels": 3,
            "share_projections": True,
            "depth": 2,
            "order": "short_long",
            "filters": 5,
        },
    ),
]


@pytest.mark.some(30)
@masks
@pytest.mark.parametrize(("size", "arguments"), REFERENCE_CASES, ids=str)
def test_equals_the_reference(size, arguments, mask):
    layer = made(mask_padding=mask, **arguments)
    x = a_map(*size)
    expected = np.stack([reference.interlaced(image, layer, mask) for image in x.numpy()])
    assert 0.1 < np.mean(expected > 0) < 1  # the ReLU neither dead nor idle
    assert relative_error(layer(x), expected) < 1e-5


@pytest.mark.parametrize(
    ("levels", "share_projections"), [(2, False), (3, False), (3, True), ("auto", True)]
)
def test_auto_is_the_best_partition(levels, share_projections):
    layer = made(partition="auto", levels=levels, share_projections=share_projections)
    x = a_map(9, 12)
    expected = reference.interlaced(x[0], layer, partitions=[ops.best_partition(9, 12, levels)])
    assert relative_error(layer(x)[0], expected) < 1e-5


# --- Who hears whom ------------------------------------------------------------------------------


def links(layer, height, width):
    """(N, N): how much the output at position i changes with the input at position j.

    One batch of N equal maps, of which map i is asked for its position i: one backward pass.
    """
    n = height * width
    one = tf.random.uniform((1, height, width, 2), 0.5, 1.5)
    x = tf.repeat(one, n, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x, training=False), -1)
        loss = tf.reduce_sum(tf.linalg.diag_part(tf.reshape(y, (n, n))))
    gradient = tape.gradient(loss, x)
    return tf.reduce_sum(tf.abs(gradient), -1).numpy().reshape(n, n)


@functools.cache
def open_layer(**arguments):
    """All weights positive: no link is lost to a closed ReLU. One for maps of all sizes."""
    return made(channels=2, positive=True, fuse=False, **arguments)


@pytest.mark.some(16)
@masks
@pytest.mark.parametrize("order", ["long_short", "short_long"])
@pytest.mark.parametrize("partition", [4, 8])
@pytest.mark.parametrize("size", [(12, 16), (10, 13), (33, 17), (5, 3)], ids=str)
def test_every_position_hears_every_other(size, partition, order, mask):
    layer = open_layer(partition=partition, order=order, mask_padding=mask)
    found = links(layer, *size)
    assert np.all(found > 0), f"{np.mean(found == 0):.1%} of the links are missing"


@pytest.mark.some(40)
@masks
@pytest.mark.parametrize("order", ["long_short", "short_long"])
@pytest.mark.parametrize("share_projections", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize(
    ("partition", "levels"), [(4, 2), (2, 3), (((3, 2), (2, 4)), 3), (2, 4)], ids=str
)
@pytest.mark.parametrize("size", [(8, 12), (10, 13), (5, 3)], ids=str)
def test_so_it_does_of_all_levels(size, partition, levels, share_projections, order, mask):
    layer = open_layer(
        partition=partition,
        levels=levels,
        share_projections=share_projections,
        order=order,
        mask_padding=mask,
    )
    found = links(layer, *size)
    assert np.all(found > 0), f"{np.mean(found == 0):.1%} of the links are missing"


@masks
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("size", [(8, 12), (5, 7)], ids=str)
def test_one_of_three_levels_links_exactly_its_groups(size, level, mask):
    partition = ((2, 1), (2, 3))
    layer = made(RangeAttention, 2, True, partition=partition, level=level, levels=3)
    layer.mask_padding = mask
    links_exactly_its_groups(layer, size, partition, level)


@masks
@pytest.mark.parametrize("kind", ["long", "short"])
@pytest.mark.parametrize("size", [(12, 16), (10, 13), (5, 3)], ids=str)
def test_a_half_links_exactly_its_groups(size, kind, mask):
    partition = (4, 4)
    layer = open_layer(partition=partition, order=kind, mask_padding=mask)
    links_exactly_its_groups(layer, size, partition, kind)


def links_exactly_its_groups(layer, size, partition, kind):
    found = links(layer, *size) > 0
    padded, image = reference.pad(np.zeros((*size, 1)), partition)
    number = np.full(image.shape, -1)
    number[image] = np.arange(size[0] * size[1])
    expected = np.zeros_like(found)
    for group in reference.groups(*padded.shape[:2], partition, kind):
        members = [number[p] for p in group if image[p]]
        expected[np.ix_(members, members)] = True
    np.testing.assert_array_equal(found, expected)


# --- Limits of the partition ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "partition"),
    [(ShortRangeAttention, (9, 7)), (ShortRangeAttention, 16), (LongRangeAttention, 1)],
    ids=["one block", "one padded block", "one residue"],
)
def test_one_group_is_dense_attention(cls, partition):
    dense, sparse = made(SelfAttention2D), made(cls, partition=partition)
    sparse.set_weights(dense.get_weights())
    x = a_map(9, 7)
    for training in (False, True):
        results = [outputs_and_gradients(layer, x, False) for layer in (sparse, dense)]
        if training and partition != 16:  # batch statistics would include the padding
            results = [outputs_and_gradients(layer, x, True) for layer in (sparse, dense)]
        for found, expected in zip(*results, strict=True):
            assert relative_error(found, expected) < 1e-4


@pytest.mark.some(12)
@masks
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3)], ids=str)
def test_maps_smaller_than_the_partition_are_finite(size, order, mask):
    layer = made(partition=8, order=order, mask_padding=mask)
    for training in (False, True):
        results = outputs_and_gradients(layer, a_map(*size), training)
        assert results[0].shape == (2, *size, 6)
        assert all(np.isfinite(result).all() for result in results)


def test_the_mask_matters_only_with_padding():
    masked, bare = made(partition=4), made(partition=4, mask_padding=False)
    np.testing.assert_array_equal(masked(a_map(8, 12)), bare(a_map(8, 12)))
    assert relative_error(bare(a_map(10, 13)), masked(a_map(10, 13))) > 1e-3


# --- Sizes known late ----------------------------------------------------------------------------


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "arguments",
    [
        {"partition": 4},
        {"partition": "auto"},
        {"partition": [3, (2, 8)]},
        {"partition": ["auto", ((2, 1), (2, 3))], "levels": 3},
        {"partition": ["auto", 2], "levels": 3, "share_projections": True},
    ],
    ids=str,
)
def test_one_model_of_unknown_size_equals_models_of_known_size(arguments):
    layer = made(**arguments)
    inputs = keras.Input((None, None, 6))
    flexible = keras.Model(inputs, layer(inputs))
    assert flexible.output_shape == (None, None, None, 6)
    spec = tf.TensorSpec((None, None, None, 6))
    traced = tf.function(lambda x: flexible(x, training=False), input_signature=[spec])
    for size in [(10, 13), (5, 3), (16, 8)]:
        inputs = keras.Input((*size, 6))
        fixed = keras.Model(inputs, layer(inputs))
        assert fixed.output_shape == (None, *size, 6)
        x = a_map(*size)
        expected = fixed(x)
        assert relative_error(traced(x), expected) < 1e-5
        assert relative_error(flexible(x), expected) < 1e-5


def test_levels_chosen_late_are_those_chosen_at_once(monkeypatch):
    """`levels="auto"`: one graph for maps of two, of three and of four levels."""
    monkeypatch.setattr(partition_ops, "LEVEL_COST", 4)
    layer = made(partition="auto", levels="auto", share_projections=True)
    spec = [tf.TensorSpec((None, None, None, 6))]

    @functools.partial(tf.function, input_signature=spec)
    def traced(x):
        return layer(x, training=False)

    @functools.partial(tf.function, input_signature=spec)
    def gradient(x):
        return tf.gradients(tf.reduce_sum(layer(x, training=False) ** 2), x)[0]

    counts = set()
    for size in [(5, 6), (12, 10), (24, 30)]:
        x = a_map(*size)
        expected, affinities = layer(x, return_affinity=True)
        counts.add(len(affinities))
        assert relative_error(traced(x), expected) < 1e-5
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=False) ** 2)
        assert relative_error(gradient(x), tape.gradient(loss, x)) < 1e-5
    assert counts == {2, 3, 4}


# --- What more levels and shared projections cost ------------------------------------------------


def products(layer, size):
    return flops_by_kind(layer, (1, *size, 8)).products


@pytest.mark.parametrize("share_projections", [False, True])
def test_growth_of_three_levels(share_projections):
    """Counted exactly: N^(4/3), and the two levels of the paper N^(3/2)."""
    sizes = [64, 96, 128, 192, 256, 384, 512]
    exponents = []
    for levels in (2, 3):
        layer = made(
            channels=8, partition="auto", levels=levels, share_projections=share_projections
        )
        counted = [products(layer, (n, n)) for n in sizes]
        exponents.append(np.polyfit(np.log(np.square(sizes)), np.log(counted), 1)[0])
    assert 1.49 < exponents[0] < 1.51 and 1.32 < exponents[1] <= 1.36


def test_products_are_those_of_the_radices():
    """K channels of queries and keys, C of values, once for every affinity; carried keys K more."""
    padded = 8 * 12  # of 6 x 9
    radices = 2 * 3, 2 * 4, 2 * 1
    for shared, carries in [(False, False), (True, False), (True, True)]:
        layer = made(
            channels=8,
            partition=((2, 4), (2, 1)),
            levels=3,
            share_projections=shared,
            carry_keys=carries,
        )
        carried = 4 * sum(radices[:2]) if carries else 0
        assert products(layer, (6, 9)) == 2 * padded * (sum(radices) * (4 + 8) + carried)


@pytest.mark.parametrize("levels", [2, 3])
def test_carried_keys_tell_what_was_heard(levels):
    """The last affinities depend on positions far from their groups, else on these alone."""
    for carries in (False, True, None):
        layer = made(FactorizedAttention, partition=2, levels=levels, carry_keys=carries)
        x = a_map(8, 8, batch=1)
        far = np.zeros(x.shape)
        far[0, 7, 7] = 1.0  # not in the group of (0, 0), which is 2 x 2
        last = [layer(x + change, return_affinity=True)[1][-1][0, 0] for change in (0, far)]
        assert np.any(last[0] != last[1]) == (levels == 3 if carries is None else carries)


def test_shared_projections_are_made_once():
    flops = []
    for levels in (2, 3):
        for share_projections in (False, True):
            layer = InterlacedSparseAttention(8, levels=levels, share_projections=share_projections)
            layer.build((None, None, None, 512))
            flops.append(flops_by_kind(layer, (1, 128, 128, 512)))
    fusion = 2 * 128**2 * 1024 * 512
    each = (flops[0].convolutions - fusion) / 2
    assert flops[2].convolutions == 3 * each + fusion
    assert flops[1].convolutions == flops[3].convolutions == each + fusion
    assert flops[1].total / flops[0].total == pytest.approx(0.64, abs=0.01)


# --- The affinity --------------------------------------------------------------------------------


@masks
def test_affinities(mask):
    layer = made(partition=[4, (3, 5)], mask_padding=mask, depth=2)
    outputs, affinities = layer(a_map(10, 13), return_affinity=True)
    assert relative_error(outputs, layer(a_map(10, 13))) < 1e-6
    expected = [(2, 16, 12, 12), (2, 12, 16, 16)] * 2 + [(2, 15, 12, 12), (2, 12, 15, 15)] * 2
    assert [tuple(a.shape) for a in affinities] == expected
    for affinity in affinities:
        assert affinity.dtype == tf.float32
        np.testing.assert_allclose(
            tf.reduce_sum(affinity, -1), np.ones(affinity.shape[:-1]), atol=1e-5
        )
    image = reference.pad(np.zeros((10, 13, 1)), (4, 4))[1]
    keys = np.array([[image[p] for p in g] for g in reference.groups(12, 16, (4, 4), "long")])
    to_padding = affinities[0].numpy().transpose(1, 3, 0, 2)[~keys]
    assert np.all(to_padding == 0) if mask else np.all(to_padding > 0)


@masks
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("order", ["long_short", "short_long"])
def test_shared_projections_are_the_product_taken_at_its_word(levels, order, mask):
    """What is gathered is ... A_2 (A_1 v), with matrices of N x N."""
    layer = made(FactorizedAttention, partition=2, levels=levels, order=order, mask_padding=mask)
    x = a_map(5, 7, batch=1)
    outputs, affinities = layer(x, return_affinity=True)
    value, image = reference.pad(reference.project(x[0].numpy(), layer)[2], layer.partition)
    padded, value = image.shape, value.reshape(image.size, -1)
    kinds = reference.kinds_of(order, levels)
    assert len(affinities) == levels
    for affinity, kind in zip(affinities, kinds, strict=True):
        matrix = np.zeros((image.size, image.size))
        groups = reference.groups(*padded, layer.partition, kind)
        for group, rows in zip(groups, affinity[0].numpy(), strict=True):
            index = np.ravel_multi_index(np.transpose(group), padded)
            matrix[np.ix_(index, index)] = rows
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
        value = matrix @ value
    context = value[image.reshape(-1)].reshape(5, 7, -1)
    expected = reference.conv_norm_relu(context, layer.output_conv)
    assert relative_error(outputs[0], expected) < 1e-5


def test_dense_affinity_is_the_formula():
    layer = made(SelfAttention2D)
    x = a_map(4, 5, batch=1)
    _, affinity = layer(x, return_affinity=True)
    query = key = np.asarray(x[0], np.float64).reshape(20, 6)
    for step in layer.query:
        query = reference.conv_norm_relu(query, step)
    for step in layer.key:
        key = reference.conv_norm_relu(key, step)
    logits = query @ key.T / np.sqrt(query.shape[-1])
    expected = np.stack([reference.softmax(row) for row in logits])
    assert relative_error(affinity[0, 0], expected) < 1e-5


@pytest.mark.parametrize("size", [(10, 13), (None, None)], ids=str)
@pytest.mark.parametrize("cls", [SelfAttention2D, LongRangeAttention, InterlacedSparseAttention])
def test_affinity_of_a_functional_model(cls, size):
    layer = made(cls, partition=4)
    inputs = keras.Input((*size, 6))
    model = keras.Model(inputs, layer(inputs, return_affinity=True))
    x = a_map(10, 13)
    found = tf.nest.flatten(model(x))
    expected = tf.nest.flatten(layer(x, return_affinity=True))
    assert len(found) == len(expected) == (3 if cls is InterlacedSparseAttention else 2)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-5


# --- Precision, compilation, dropout -------------------------------------------------------------


BEYOND = [
    {"partition": 4},
    {"partition": 2, "levels": 3},
    {"partition": 2, "levels": 3, "share_projections": True},
]
forms = pytest.mark.parametrize("form", BEYOND, ids=["published", "levels", "shared"])


@forms
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_stays_near_float32(policy, form):
    layer, full = made(**form, dtype=policy), made(**form)
    outputs, affinities = layer(a_map(10, 13), return_affinity=True)
    assert outputs.dtype == policy.removeprefix("mixed_")
    assert all(a.dtype == tf.float32 for a in affinities)
    assert relative_error(outputs, full(a_map(10, 13))) < (
        0.05 if policy == "mixed_bfloat16" else 0.005
    )


def test_float64_is_close_to_the_reference():
    layer = made(partition=4, dtype="float64")
    x = tf.cast(a_map(10, 13), tf.float64)
    outputs = layer(x)
    assert outputs.dtype == tf.float64
    # Not closer: the softmax is computed in float32.
    assert relative_error(outputs[0], reference.interlaced(x[0], layer)) < 1e-6


@pytest.mark.some(2)
@forms
def test_xla_equals_eager(form):
    plain, inside = made(**form), made(**form, jit_compile=True)
    x = a_map(6, 7)
    expected = outputs_and_gradients(plain, x, True)
    outside = tf.function(outputs_and_gradients, jit_compile=True)
    for found in (outputs_and_gradients(inside, x, True), outside(plain, x, True)):
        for a, b in zip(found, expected, strict=True):
            assert relative_error(a, b) < 1e-3


def test_dropout_leaves_out_whole_channels():
    layer = made(partition=4, dropout=0.5, filters=64)
    plain = layer(a_map(8, 8), training=False).numpy()
    dropped = layer(a_map(8, 8), training=True).numpy().reshape(2, 64, 64)
    kept = np.any(dropped, axis=1)
    assert 0.2 < kept.mean() < 0.8
    assert np.any(plain.reshape(2, 64, 64), axis=1).mean() > kept.mean()


def test_shared_projections_are_the_weights_of_one_attention():
    two, three, alone = (
        made(partition="auto", levels=levels, share_projections=True, order=order, name="isa")
        for levels, order in ((2, "long_short"), (3, "short_long"), (2, "long"))
    )
    paths = [[v.path for v in layer.variables] for layer in (two, three, alone)]
    assert paths[0] == paths[1] == paths[2]
    dense = made(SelfAttention2D)
    assert len(two.attentions) == 1 and len(two.attentions[0].weights) == len(dense.weights)
    deep = made(partition=[4, 2], depth=3, share_projections=True)
    assert [a.name for a in deep.attentions[:4]] == [
        "branch1_shared1", "branch1_shared2", "branch1_shared3", "branch2_shared1",
    ]  # fmt: skip
    assert len({id(v) for v in deep.variables}) == len(deep.variables)


def test_names_of_attentions_are_kept():
    """Files name weights by them."""

    def names(**arguments):
        return [attention.name for attention in made(**arguments).attentions]

    assert names(partition=[4, 2], order="short_long") == [
        "branch1_short1", "branch1_long1", "branch2_short1", "branch2_long1",
    ]  # fmt: skip
    assert names(partition=2, levels=3, depth=2) == [
        f"branch1_level{level}_{run}" for run in (1, 2) for level in (0, 1, 2)
    ]


def test_depth_and_branches_have_weights_of_their_own():
    layer = made(partition=[4, 2], depth=3)
    assert len(layer.attentions) == 12
    assert len({id(v) for v in layer.variables}) == len(layer.variables)
    single = made(partition=4)
    assert len(layer.attentions) * len(single.attentions[0].weights) + 10 == len(layer.weights)


# --- Two replicas --------------------------------------------------------------------------------


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("training", "jit_compile", "form"),
    [(False, True, 0), (True, False, 0), (True, False, 1), (False, True, 2), (True, False, 2)],
)
def test_two_replicas_equal_one(mirrored, training, jit_compile, form):
    """Outputs and summed gradients; in training with shared batch statistics."""
    arguments = {**BEYOND[form], "synchronized": True, "jit_compile": jit_compile}
    one = made(**arguments)
    with mirrored.scope():
        two = made(**arguments)
    x = a_map(7, 6, batch=4)

    def step(layer, part):
        with tf.GradientTape() as tape:
            outputs = layer(part, training=training)
            loss = tf.reduce_sum(outputs**2)
        return [outputs, *tape.gradient(loss, layer.trainable_variables)]

    parts = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.split(x, 2)[context.replica_id_in_sync_group]
    )
    run = tf.function(lambda p: mirrored.run(step, (two, p)))
    local = [mirrored.experimental_local_results(r) for r in run(parts)]
    found = [tf.concat(local[0], 0), *(sum(gradient) for gradient in local[1:])]
    for a, b in zip(found, step(one, x), strict=True):
        assert relative_error(a, b) < 1e-3
    for a, b in zip(two.non_trainable_variables, one.non_trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# --- What is refused -----------------------------------------------------------------------------

BAD = [
    *[({"partition": p}, "partition") for p in (0, -2, True, 1.5, "foo", (1, 2, 3), (4, 0), None)],
    *[({"partition": p}, "partition") for p in ([], [4, 0], [4, "foo"])],
    ({"key_filters": 0}, "key_filters"),
    ({"filters": 0}, "filters"),
    ({"filters": -3}, "filters"),
    ({"depth": 0}, "depth"),
    ({"order": "long_long"}, "order.*long_short"),
    ({"order": None}, "order"),
    ({"dropout": 1}, "dropout"),
    ({"dropout": -0.1}, "dropout"),
]
BAD_LEVELS = [
    *[({"levels": n}, "levels must be an int of at least 2") for n in (1, 0, -3, True, 2.5, None)],
    ({"levels": "foo"}, "levels must be an int of at least 2"),
    ({"levels": 3, "partition": ((4, 4),)}, "of 3 levels has 2 pairs"),
    ({"levels": 3, "partition": ((4, 4),) * 3}, "of 3 levels has 2 pairs"),
    ({"partition": ((4, 4), (2, 2))}, "of 2 levels has 1 pairs"),
    ({"levels": 3, "partition": ((4, 4), (2, 0))}, "a partition is"),
    ({"levels": 3, "partition": ((4, 4), (2, 2, 2))}, "a partition is"),
    ({"levels": 3, "partition": ((4, 4), "auto")}, "a partition is"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD + BAD_LEVELS, ids=str)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        InterlacedSparseAttention(**arguments)


@pytest.mark.parametrize("cls", [SelfAttention2D, LongRangeAttention, ShortRangeAttention])
def test_bad_arguments_of_one_attention_are_refused(cls):
    for arguments, message in BAD:
        if set(arguments) & {"depth", "order"}:
            continue
        with pytest.raises(ValueError, match=message):
            cls(**arguments)


@pytest.mark.parametrize("cls", [FactorizedAttention, RangeAttention])
def test_bad_levels_of_one_attention_are_refused(cls):
    for arguments, message in BAD_LEVELS:
        with pytest.raises(ValueError, match=message):
            cls(**arguments)


def test_levels_that_need_something_else_are_refused():
    with pytest.raises(ValueError, match="needs share_projections=True"):
        InterlacedSparseAttention("auto", levels="auto")
    with pytest.raises(ValueError, match="carry_keys=True needs share_projections=True"):
        InterlacedSparseAttention(carry_keys=True)
    for partition in (8, [8, "auto"]):
        with pytest.raises(ValueError, match='needs partition="auto", got 8'):
            InterlacedSparseAttention(partition, levels="auto", share_projections=True)
    for level in (3, -1, "long", True, 1.5):
        with pytest.raises(ValueError, match="level must be an int from 0 to 2"):
            RangeAttention(2, level=level, levels=3)
    with pytest.raises(ValueError, match="levels must be an int of at least 2, got 'auto'"):
        RangeAttention("auto", levels="auto")
    with pytest.raises(ValueError, match="order must be one of"):
        FactorizedAttention(order="long_long")


@pytest.mark.parametrize("cls", [SelfAttention2D, LongRangeAttention, InterlacedSparseAttention])
def test_what_is_no_map_is_refused(cls):
    for shape in ((2, 6, 8), (2, 3, 4, 5, 6)):
        with pytest.raises(ValueError, match="feature map"):
            cls()(tf.zeros(shape))
    with pytest.raises(ValueError, match="known C"):
        cls()(keras.Input((8, 8, None)))


@pytest.mark.parametrize(
    "partition", list(itertools.chain((4, (4, 2), "auto"), ([4], [[4, 2]], ["auto", (2, 2)])))
)
@pytest.mark.parametrize("levels", [2, 3])
def test_partitions_survive_the_config(partition, levels):
    layer = InterlacedSparseAttention(partition, levels=levels)
    twin = InterlacedSparseAttention.from_config(json.loads(json.dumps(layer.get_config())))
    assert twin.partitions == layer.partitions and twin.levels == levels


def test_pairs_of_several_levels():
    """A tuple of pairs is one partition, a list of pairs are several."""

    def partitions(partition, levels=3):
        layer = InterlacedSparseAttention(partition, levels=levels)
        again = InterlacedSparseAttention.from_config(json.loads(json.dumps(layer.get_config())))
        assert again.partitions == layer.partitions
        return layer.partitions

    assert partitions(((4, 2), (3, 1))) == [((4, 2), (3, 1))]
    assert partitions([(4, 2), (3, 1)]) == [((4, 2), (4, 2)), ((3, 1), (3, 1))]
    assert partitions([((4, 2), 3), 2, "auto"]) == [((4, 2), (3, 3)), ((2, 2), (2, 2)), "auto"]
    assert partitions(((4, 2),), levels=2) == [(4, 2)]
    assert FactorizedAttention([[4, 2], [3, 1]], levels=3).partition == ((4, 2), (3, 1))
