"""mmsegmentation's ISANet, to compare with; only the environment of `make parity` has it."""

import sys
import types

from tools import torchvision_operators  # noqa: F401 (before timm, which mmsegmentation imports)


class _Missing(types.ModuleType):
    """Stands for mmcv's compiled operators, of which ISANet needs none."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_mmseg():
    """mmsegmentation's `EncoderDecoder`, every module of it registered."""
    for name in ("mmcv._ext", "mmcv.ops"):
        sys.modules.setdefault(name, _Missing(name))
    from mmseg.models.segmentors import EncoderDecoder
    from mmseg.utils import register_all_modules

    register_all_modules()
    return EncoderDecoder


def isanet(depth=50, num_classes=19, align_corners=False, filters=64, test_cfg=None):
    """An `EncoderDecoder` as the published configs have it.

    Args:
        depth: int, of the ResNet. Defaults to 50.
        num_classes: int. Defaults to 19.
        align_corners: bool, of both heads. Defaults to `False`.
        filters: int, of the first stage; below 64 it narrows the whole. Defaults to 64.
        test_cfg: dict, or `None` for whole images. Defaults to `None`.
    """
    encoder_decoder = import_mmseg()
    from mmengine import ConfigDict

    norm = {"type": "BN", "requires_grad": True}
    head = {"dropout_ratio": 0.1, "num_classes": num_classes, "norm_cfg": norm}
    head["align_corners"] = align_corners
    return encoder_decoder(
        backbone={
            "type": "ResNetV1c",
            "depth": depth,
            "base_channels": filters,
            "stem_channels": filters,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "dilations": (1, 1, 2, 4),
            "strides": (1, 2, 1, 1),
            "norm_cfg": norm,
            "style": "pytorch",
            "contract_dilation": True,
        },
        decode_head={
            "type": "ISAHead",
            "in_channels": 32 * filters,
            "in_index": 3,
            "channels": 8 * filters,
            "isa_channels": 4 * filters,
            "down_factor": (8, 8),
            **head,
        },
        auxiliary_head={
            "type": "FCNHead",
            "in_channels": 16 * filters,
            "in_index": 2,
            "channels": 4 * filters,
            "num_convs": 1,
            "concat_input": False,
            **head,
        },
        train_cfg={},
        test_cfg=ConfigDict(test_cfg or {"mode": "whole"}),
    )
