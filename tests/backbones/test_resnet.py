"""ResNet: output strides that agree, PyTorch's padding, the published parameter counts."""

import numpy as np
import pytest
from networks import image, randomize_norms

from isa_tf.backbones import ResNet, create


def at_strides(depth, size, **arguments):
    """The last two maps of one network at output stride 8, 16 and 32."""
    models = {stride: ResNet(depth, stride, **arguments) for stride in (8, 16, 32)}
    randomize_norms(models[8], (0.3, 1.0))
    results = {}
    for stride, model in models.items():
        model.set_weights(models[8].get_weights())
        maps = model(image(*size))
        results[stride] = [np.asarray(maps[key]) for key in ("c4", "c5")]
    return results


def assert_agree(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("depth", "size", "stem"),
    [(18, (64, 97), "v1"), (18, (75, 66), "deep"), (50, (64, 33), "v1c")],
)
def test_output_strides_agree(depth, size, stem):
    """A symmetric padding puts position i of a stride-2 map on 2 i, to the very border."""
    maps = at_strides(depth, size, stem=stem)
    (c4_8, c5_8), (c4_16, c5_16), (c4_32, c5_32) = maps[8], maps[16], maps[32]
    assert_agree(c4_8[:, ::2, ::2], c4_16)
    assert_agree(c5_8[:, ::2, ::2], c5_16)
    assert_agree(c4_16, c4_32)
    assert_agree(c5_16[:, ::2, ::2], c5_32)


def test_full_dilation_is_another_network():
    maps = at_strides(18, (64, 64), contract_dilation=False)
    assert np.abs(maps[8][1][:, ::2, ::2] - maps[16][1]).max() > 0.05 * np.abs(maps[16][1]).max()


def rates(model, block):
    convs = [f"stage{block[0]}_block{block[1]}_conv{i}" for i in (1, 2)]
    return [model.get_layer(name).dilation_rate for name in convs]


@pytest.mark.parametrize(
    ("depth", "contract", "expected"),
    [
        (50, True, [[1, 1], [1, 2], [1, 2], [1, 4]]),
        (50, False, [[1, 2], [1, 2], [1, 4], [1, 4]]),
        (18, True, [[1, 2], [2, 2], [2, 4], [4, 4]]),
        (18, False, [[2, 2], [2, 2], [4, 4], [4, 4]]),
    ],
)
def test_dilation_at_output_stride_8(depth, contract, expected):
    model = ResNet(depth, output_stride=8, contract_dilation=contract)
    assert [rates(model, block) for block in ((3, 1), (3, 2), (4, 1), (4, 2))] == expected
    assert rates(model, (2, 2)) == [1, 1]


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("name", "count"),
    [  # torchvision's, less the classifier
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
    ],
)
def test_parameter_counts(name, count):
    model = create(name)
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == count


def test_stem_as_pytorch_pads_it():
    """Against windows taken by hand: 7x7 with 3 zeros around, then 3x3 maxima."""
    model = ResNet(18)
    randomize_norms(model, (0.3, 1.0))
    pixels = image(18, 21)
    maps = model(pixels)
    stem = model.get_layer("stem_conv1")
    x = np.asarray(model.get_layer("normalize")(pixels))[0]
    x = np.pad(x, ((3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (7, 7), axis=(0, 1))[::2, ::2]
    y = np.einsum("ijcxy,xycf->ijf", windows, np.asarray(stem.conv.kernel))
    norm = stem.norm
    y = (y - norm.moving_mean) / np.sqrt(norm.moving_variance + 1e-5) * norm.gamma + norm.beta
    y = np.maximum(y, 0)
    np.testing.assert_allclose(maps["c1"][0], y, atol=1e-4)

    padded = np.pad(y, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))[::2, ::2]
    pooled = model.get_layer("stem_pool")(model.get_layer("stem_pad")(maps["c1"]))
    np.testing.assert_allclose(pooled[0], windows.max((-1, -2)), atol=1e-4)


def test_vd_shortcut():
    model = ResNet(18, output_stride=8, shortcut="vd")
    names = {layer.name for layer in model.layers}
    assert "stage2_block1_pool" in names
    # Strides that became dilation leave nothing to pool.
    assert not {"stage3_block1_pool", "stage4_block1_pool"} & names
    ones = np.ones((1, 5, 4, 64), "float32")
    pooled = model.get_layer("stage2_block1_pool")(ones)
    np.testing.assert_array_equal(pooled, np.ones((1, 3, 2, 64)))


def test_stride_in_1x1():
    """The first convolution of a block reads every other position, the second all that is left."""
    model = ResNet(50, filters=4, stride_in_1x1=True, epsilon=0.25)
    assert model.get_config()["stride_in_1x1"] and model.get_config()["epsilon"] == 0.25
    for stage, strides in ((1, 1), (2, 2), (3, 2), (4, 2)):
        first, second = (model.get_layer(f"stage{stage}_block1_conv{i}") for i in (1, 2))
        assert (first.strides, second.strides) == (strides, 1)
        assert first.epsilon == second.norm.epsilon == 0.25
        again = [model.get_layer(f"stage{stage}_block2_conv{i}").strides for i in (1, 2)]
        assert again == [1, 1]
    maps = model(image(65, 97))
    assert [maps[f"c{i}"].shape[1:3] for i in (2, 3, 4, 5)] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    assert ResNet.from_config(model.get_config()).stride_in_1x1


def test_an_epsilon_of_zero_is_none():
    model = ResNet(18, filters=4, epsilon=0.0)
    layer = model.get_layer("stem_conv1")
    layer.norm.moving_variance.assign([1e-8, 1e-6, 1.0, 4.0])
    x = layer.conv(layer.pad(image(16, 16))).numpy()
    expected = np.maximum(x / np.sqrt([1e-8, 1e-6, 1.0, 4.0]), 0)
    np.testing.assert_allclose(layer(image(16, 16)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18, "stride_in_1x1": True}, "stride_in_1x1 is of bottlenecks"),
        ({"epsilon": -1e-5}, "epsilon must be at least 0"),
    ],
)
def test_what_is_wrong_with_them_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)
