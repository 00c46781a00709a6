"""torchvision beside the CPU build of PyTorch, where its compiled operators do not load.

Importing this module before torchvision puts plain PyTorch in their places, where they do not:
suppression as `torchvision::nms` does it, and RoIAlign as its kernels compute it. The rest is
torchvision's own. Written for what is compared here, not for speed: what uses them is not timed.
"""

import importlib.util
from pathlib import Path

import torch


def _load():
    """Whether torchvision's compiled operators load."""
    folder = Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        for path in folder.glob("_C*.so"):
            torch.ops.load_library(path)
    except OSError:  # a library of CUDA's is missing, or a symbol
        return False
    return hasattr(torch.ops.torchvision, "nms")


COMPILED = _load()
if not COMPILED:
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision.models.detection.roi_heads  # noqa: E402
import torchvision.ops.poolers  # noqa: E402


def nms(boxes, scores, iou_threshold):
    """Indices of the boxes that are kept, the highest scores first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    x1, y1, x2, y2 = boxes[order].unbind(1)
    areas, kept = (x2 - x1) * (y2 - y1), []
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        width = (torch.minimum(x2[i], x2) - torch.maximum(x1[i], x1)).clamp(min=0)
        height = (torch.minimum(y2[i], y2) - torch.maximum(y1[i], y1)).clamp(min=0)
        shared = width * height
        # What has no area overlaps nothing: 0 / 0 is above no threshold.
        alive &= ~(shared / (areas[i] + areas - shared) > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.int64)]


def _weights(start, end, bins, samples, size, aligned):
    """(bins, size): what bins average of an axis of `size` positions."""
    length = end - start
    start = start - 0.5 if aligned else start
    length = length if aligned else max(length, 1.0)
    # As many samples as a bin is long; none at all makes an empty sum.
    count = samples if samples > 0 else max(int(-(-length // bins)), 0)
    index = torch.arange(bins * count, dtype=torch.float64) + 0.5
    places = start + index * (length / max(bins * count, 1))
    inside = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    positions = torch.arange(size, dtype=torch.float64)
    hat = (1 - (places[:, None] - positions).abs()).clamp(min=0) * inside[:, None]
    return hat.reshape(bins, count, size).sum(1) / max(count, 1)


def roi_align(input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    """`torchvision.ops.roi_align`: samples lie on grids, so a box is two products of matrices."""
    height, width = output_size if isinstance(output_size, (tuple, list)) else [output_size] * 2
    if not isinstance(boxes, torch.Tensor):
        counts = [len(b) for b in boxes]
        index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        boxes = torch.cat([index[:, None].to(boxes[0]), torch.cat(boxes)], 1)
    found = []
    for image, x1, y1, x2, y2 in (boxes.detach() * 1.0).tolist():
        x1, y1, x2, y2 = (v * spatial_scale for v in (x1, y1, x2, y2))
        rows = _weights(y1, y2, height, sampling_ratio, input.shape[2], aligned)
        columns = _weights(x1, x2, width, sampling_ratio, input.shape[3], aligned)
        rows, columns = rows.to(input.dtype), columns.to(input.dtype)
        # Only what is read is multiplied.
        i, j = (w.sum(0).nonzero().flatten() for w in (rows, columns))
        if not len(i) or not len(j):
            found.append(input.new_zeros(input.shape[1], height, width))
            continue
        i, j = slice(i[0], i[-1] + 1), slice(j[0], j[-1] + 1)
        found.append(rows[:, i] @ input[int(image), :, i, j] @ columns[:, j].T)
    return torch.stack(found) if found else input.new_zeros(0, input.shape[1], height, width)


if not COMPILED:
    torchvision.ops.boxes.nms = nms
    torchvision.ops.boxes._assert_has_ops = lambda: None
    torchvision.ops.poolers.roi_align = roi_align
    torchvision.models.detection.roi_heads.roi_align = roi_align
