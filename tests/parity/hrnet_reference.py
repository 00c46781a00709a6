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


def mmseg(width=48, modules=(1, 4, 3), blocks=4, seed=0):
    """mmsegmentation's backbone, as its configs have it where nothing else is said."""
    mmseg_models.import_mmseg()
    from mmseg.models.backbones import HRNet  # noqa: PLC0415

    extra = {
        "stage1": {
            "num_modules": 1,
            "num_branches": 1,
            "block": "BOTTLENECK",
            "num_blocks": (blocks,),
            "num_channels": (64,),
        }
    }
    for stage, count in enumerate(modules, 2):
        extra[f"stage{stage}"] = {
            "num_modules": count,
            "num_branches": stage,
            "block": "BASIC",
            "num_blocks": (blocks,) * stage,
            "num_channels": tuple(width * 2**i for i in range(stage)),
        }
    model = HRNet(extra)
    model.eval()  # which returns nothing here
    randomize(model, lambda image: scales(model, image), seed)
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
