"""mmsegmentation's ISANet, with random weights and statistics, and what it computes.

Only the environment of `make parity` has it.
"""

import types

import numpy as np
import torch
from parity import randomize

from tools import mmseg_models

MEAN = np.array([123.675, 116.28, 103.53], "float32")
STD = np.array([58.395, 57.12, 57.375], "float32")


def isanet(depth=50, num_classes=19, align_corners=False, filters=64, test_cfg=None, seed=0):
    """`mmseg_models.isanet` with random weights and statistics."""
    model = mmseg_models.isanet(depth, num_classes, align_corners, filters, test_cfg)
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
