"""Context modules beside the heads of mmsegmentation 1.2.2 that hold them, with their weights."""

import numpy as np
import pytest

pytest.importorskip("mmseg", reason="mmsegmentation is in the environment of `make parity` alone")

import mmseg_reference as reference  # noqa: E402
import torch  # noqa: E402
from parity import check, images, randomize  # noqa: E402

from isa_tf.layers.non_local import NonLocal2D  # noqa: E402
from isa_tf.layers.pyramid import AtrousSpatialPyramidPooling, PyramidPooling  # noqa: E402
from isa_tf.weights.transfer import Transfer  # noqa: E402
from tools import mmseg_models  # noqa: E402

CHANNELS, FILTERS = 24, 12
# Of the images; the maps have an eighth of it, of which some are smaller than the pool sizes.
SIZES = [(96, 96), (129, 257), (97, 161), (41, 33)]
COORDINATES = {False: "half_pixel", True: "align_corners"}


def features(image):
    """A map (B, CHANNELS, H / 8, W / 8) of images (B, H, W, 3): mixtures of their colours."""
    mix = torch.randn((CHANNELS, 3), generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.avg_pool2d(reference.normalized(image), 8, ceil_mode=True)
    return torch.einsum("oc,bchw->bohw", mix, x)


def make_head(name, align_corners=False, **arguments):
    """A head of mmsegmentation with random weights and statistics."""
    mmseg_models.import_mmseg()
    from mmseg.models import decode_heads  # noqa: PLC0415

    head = getattr(decode_heads, name)(
        in_channels=CHANNELS,
        channels=FILTERS,
        num_classes=7,
        norm_cfg={"type": "BN"},
        align_corners=align_corners,
        **arguments,
    ).eval()
    randomize(head, lambda image: head([features(image)]))
    return head


def transferred(layer, head, channels, fill, left_over):
    """The layer with the head's weights: each has its place, but for those of `left_over`."""
    layer.build((None, None, None, channels))
    tensors = {name: tensor.numpy() for name, tensor in head.state_dict().items()}
    transfer = Transfer(tensors, "head.pth")

    def conv_module(layer, name):
        transfer.conv_norm(layer, f"{name}.conv", f"{name}.bn")

    fill(transfer, conv_module)
    assert transfer.finish(layer, left_over).kept == []
    return layer


def apply(layer, x):
    """The layer on a map of PyTorch's, and back."""
    y = np.asarray(layer(x.numpy().transpose(0, 2, 3, 1)))
    return torch.from_numpy(np.ascontiguousarray(y.transpose(0, 3, 1, 2)))


def check_head(head, ours):
    """`ours` is a function from the features to the head's logits."""

    def both(size):
        x = features(images(*size, batch=2))
        with torch.no_grad():
            return [y.numpy().transpose(0, 2, 3, 1) for y in (ours(x), head([x]))]

    check(map(both, SIZES))


@pytest.mark.parametrize("align_corners", COORDINATES, ids=COORDINATES.values())
def test_pyramid_pooling(align_corners):
    head = make_head("PSPHead", align_corners)
    layer = PyramidPooling(
        pool_filters=FILTERS, filters=FILTERS, coordinates=COORDINATES[align_corners]
    )

    def fill(transfer, conv_module):
        for i, pool in enumerate(layer.pools):
            conv_module(pool, f"psp_modules.{i}.1")
        conv_module(layer.fusion, "bottleneck")

    transferred(layer, head, CHANNELS, fill, ("conv_seg.",))
    check_head(head, lambda x: head.cls_seg(apply(layer, x)))


def test_atrous_spatial_pyramid_pooling():
    head = make_head("ASPPHead", dilations=(1, 2, 5, 12))
    layer = AtrousSpatialPyramidPooling(
        (2, 5, 12), branch_filters=FILTERS, fusion_kernel_size=3, filters=FILTERS
    )

    def fill(transfer, conv_module):
        conv_module(layer.image_pool, "image_pool.1")
        for i, branch in enumerate([layer.pointwise, *layer.dilated]):
            conv_module(branch, f"aspp_modules.{i}")
        conv_module(layer.fusion, "bottleneck")

    transferred(layer, head, CHANNELS, fill, ("conv_seg.",))
    check_head(head, lambda x: head.cls_seg(apply(layer, x)))


@pytest.mark.parametrize(("use_scale", "reduction"), [(True, 2), (False, 3)])
def test_non_local(use_scale, reduction):
    """The block between the head's own convolutions."""
    head = make_head("NLHead", use_scale=use_scale, reduction=reduction)
    layer = NonLocal2D(key_filters=FILTERS // reduction, use_scale=use_scale)

    def fill(transfer, conv_module):
        for name in ("theta", "phi", "g"):
            transfer.conv(getattr(layer, name), f"nl_block.{name}.conv")
        conv_module(layer.output_conv, "nl_block.conv_out")

    transferred(layer, head, FILTERS, fill, ("convs.", "conv_cat.", "conv_seg."))

    def ours(x):
        y = head.convs[1](apply(layer, head.convs[0](x)))
        return head.cls_seg(head.conv_cat(torch.cat([x, y], dim=1)))

    check_head(head, ours)
