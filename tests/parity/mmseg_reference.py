"""mmsegmentation's ISANet, with random weights and statistics, and what it computes.

Only the environment of `make parity` has it.
"""

import sys
import types

import numpy as np
import torch
from mmengine import ConfigDict
from parity import randomize

MEAN = np.array([123.675, 116.28, 103.53], "float32")
STD = np.array([58.395, 57.12, 57.375], "float32")


class _Missing(types.ModuleType):
    """Stands for mmcv's compiled operators, of which ISANet needs none."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_mmseg():
    for name in ("mmcv._ext", "mmcv.ops"):
        sys.modules.setdefault(name, _Missing(name))
    from mmseg.models.segmentors import EncoderDecoder  # noqa: PLC0415
    from mmseg.utils import register_all_modules  # noqa: PLC0415

    register_all_modules()
    return EncoderDecoder


def isanet(depth=50, num_classes=19, align_corners=False, filters=64, test_cfg=None, seed=0):
    """An `EncoderDecoder` as the published configs have it; `filters` below 64 narrows it."""
    encoder_decoder = import_mmseg()
    norm = {"type": "BN", "requires_grad": True}
    head = {"dropout_ratio": 0.1, "num_classes": num_classes, "norm_cfg": norm}
    head["align_corners"] = align_corners
    model = encoder_decoder(
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
    model.eval()
    randomize(model, lambda image: logits(model, image), seed)
    return model


def save(model, path):
    """As the published files are: weights under "state_dict", beside a "meta"."""
    meta = {"CLASSES": ("a", "b"), "epoch": 1, "mmseg_version": "0.18.0"}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, path)


def normalized(image):
    """(B, H, W, 3) uint8 RGB -> what the network reads, (B, 3, H, W)."""
    x = (image.astype("float32") - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def logits(model, image):
    """The main and the auxiliary head's logits at full size, each (B, H, W, classes)."""
    with torch.no_grad():
        inputs = normalized(image)
        maps = model.extract_feat(inputs)
        found = []
        for head in (model.decode_head, model.auxiliary_head):
            small = head(maps)
            full = torch.nn.functional.interpolate(
                small, inputs.shape[2:], mode="bilinear", align_corners=head.align_corners
            )
            found.append(full.numpy().transpose(0, 2, 3, 1))
    return found


def whole_or_slide(model, image):
    """The logits of mmsegmentation's own test-time inference, in whole or by sliding windows."""
    meta = dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), image.shape[1:3])
    with torch.no_grad():
        found = model.inference(normalized(image), [meta] * len(image))
    return found.numpy().transpose(0, 2, 3, 1)


def augmented(model, views, size):
    """Class ids (H, W) of one image by mmsegmentation's test-time augmentation, and their scores.

    `views` are (image (1, h, w, 3), whether it is mirrored): the same arrays for both sides, since
    cv2 and TensorFlow round a resized image differently.
    """
    from mmseg.models.segmentors.seg_tta import SegTTAModel  # noqa: PLC0415
    from mmseg.structures import SegDataSample  # noqa: PLC0415

    samples = []
    for view, mirrored in views:
        meta = {"ori_shape": size, "img_shape": view.shape[1:3], "pad_shape": view.shape[1:3]}
        meta |= {"flip": mirrored, "flip_direction": "horizontal", "img_path": ""}
        with torch.no_grad():
            found = model.inference(normalized(view), [meta])
        samples += model.postprocess_result(found, [SegDataSample(metainfo=meta)])
    scores = torch.stack([sample.seg_logits.data.softmax(0) for sample in samples]).mean(0)
    merged = SegTTAModel.merge_preds(types.SimpleNamespace(module=model), [samples])
    return merged[0].pred_sem_seg.data.numpy().squeeze(), scores.max(0).values.numpy()
