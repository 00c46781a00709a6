"""HRNets of mmsegmentation and timm with random weights and statistics, and what they compute.

Only the environment of `make parity` has them.
"""

import mmseg_reference
import numpy as np
import timm
import torch
from parity import randomize
from torch import nn

from tools import mmseg_models


def _config(width, modules, blocks, filters):
    """The `extra` of mmsegmentation's HRNet."""

    def stage(number, modules, widths, block="BASIC"):
        return {
            "num_modules": modules,
            "num_branches": number,
            "block": block,
            "num_blocks": (blocks,) * number,
            "num_channels": tuple(widths),
        }

    extra = {"stage1": stage(1, 1, [filters], "BOTTLENECK")}
    for number, count in enumerate(modules, 2):
        widths = (width * 2**i for i in range(number))
        extra[f"stage{number}"] = stage(number, count, widths)
    return extra


def _narrow(model, filters):
    """Gives mmsegmentation's HRNet, whose stem has always 64 filters, one of so many."""
    from mmseg.models.backbones.resnet import Bottleneck  # noqa: PLC0415

    model.conv1 = nn.Conv2d(3, filters, 3, 2, 1, bias=False)
    model.conv2 = nn.Conv2d(filters, filters, 3, 2, 1, bias=False)
    model.bn1, model.bn2 = nn.BatchNorm2d(filters), nn.BatchNorm2d(filters)
    model.layer1 = model._make_layer(Bottleneck, filters, filters, len(model.layer1))
    model.eval()


def mmseg(width=48, modules=(1, 4, 3), blocks=4, seed=0):
    """mmsegmentation's backbone with random weights and statistics."""
    mmseg_models.import_mmseg()
    from mmseg.models.backbones import HRNet  # noqa: PLC0415

    model = HRNet(_config(width, modules, blocks, 64))
    model.eval()  # which returns nothing here
    randomize(model, lambda image: scales(model, image), seed)
    return model


def isanet(width=18, num_classes=5, align_corners=False, filters=64, seed=0, **sizes):
    """mmsegmentation's ISANet over its HRNet, with an auxiliary head on the same map.

    `sizes` are modules and blocks of the HRNet, and channels and keys of the head.
    """
    encoder_decoder = mmseg_models.import_mmseg()
    from mmengine import ConfigDict  # noqa: PLC0415

    sizes = {"modules": (1, 4, 3), "blocks": 4, "channels": 512, "keys": 256, **sizes}
    shared = {
        "in_channels": [width * 2**i for i in range(4)],
        "in_index": (0, 1, 2, 3),
        "input_transform": "resize_concat",
        "channels": sizes["channels"],
        "num_classes": num_classes,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "align_corners": align_corners,
    }
    extra = _config(width, sizes["modules"], sizes["blocks"], filters)
    head = {"type": "ISAHead", "isa_channels": sizes["keys"], "down_factor": (8, 8)}
    model = encoder_decoder(
        backbone={"type": "HRNet", "extra": extra},
        decode_head={**head, **shared},
        auxiliary_head={"type": "FCNHead", "num_convs": 1, "concat_input": False, **shared},
        train_cfg={},
        test_cfg=ConfigDict({"mode": "whole"}),
    )
    _narrow(model.backbone, filters)
    model.eval()
    randomize(model, lambda image: mmseg_reference.logits(model, image), seed)
    return model


def official(model, align_corners):
    """mmsegmentation's backbone turned into one of HRNet's segmentation code or the official one.

    They resize a coarser map once, to the finer one's size, and in these coordinates.
    """

    class Fused(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.branches, self.layers = module.branches, module.fuse_layers

        def forward(self, maps):
            maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
            found = []
            for i, row in enumerate(self.layers):
                terms = []
                for j, x in enumerate(maps):
                    if j > i:
                        x = resized(row[j][:2](x), maps[i], align_corners)
                    elif j < i:
                        x = row[j](x)
                    terms.append(x)
                found.append(torch.relu(sum(terms)))
            return found

    for stage in (model.stage2, model.stage3, model.stage4):
        for i, module in enumerate(stage):
            stage[i] = Fused(module)
    return model


def timms(width=48, seed=0):
    """timm's classifier; a ReLU'd sum of maps of which the coarser are repeated, not interpolated.

    Segmentation interpolates, so it does here; sizes have to be multiples of 32 all the same.
    """
    model = timm.create_model(f"hrnet_w{width}", pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False

    def forward(image):
        height, width = (-(-size // 32) * 32 for size in image.shape[1:3])
        padded = np.zeros((len(image), height, width, 3), "uint8")
        padded[:, : image.shape[1], : image.shape[2]] = image
        timm_scales(model, padded)
        with torch.no_grad():
            model(mmseg_reference.normalized(padded))

    randomize(model, forward, seed)
    return model


def resized(x, reference, align_corners):
    return nn.functional.interpolate(
        x, reference.shape[2:], mode="bilinear", align_corners=align_corners
    )


def scales(model, image):
    """The four maps of mmsegmentation's, each (B, C, h, w)."""
    with torch.no_grad():
        return model(mmseg_reference.normalized(image))


def timm_scales(model, image):
    """The four maps that timm's classifier begins with."""
    with torch.no_grad():
        x = mmseg_reference.normalized(image)
        x = model.act1(model.bn1(model.conv1(x)))
        return model.stages(model.act2(model.bn2(model.conv2(x))))


def features(maps, align_corners=False):
    """By name what `isa_tf.backbones.HRNet` gives of these four maps, (B, h, w, C)."""
    finest, *others = maps
    whole = torch.cat([finest, *(resized(x, finest, align_corners) for x in others)], 1)
    named = {f"c{i}": x for i, x in enumerate(maps, 2)} | {"concatenated": whole}
    return {name: x.numpy().transpose(0, 2, 3, 1) for name, x in named.items()}
