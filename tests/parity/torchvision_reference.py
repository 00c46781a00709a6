"""torchvision's Mask R-CNN with random weights and statistics, and what each of its parts computes.

Only the environment of `make parity` has it.
"""

import numpy as np
import torch
from parity import images, randomize

from tools import torchvision_operators  # noqa: F401 (before torchvision)

from torchvision.models import detection, resnet  # isort: skip
from torchvision.models.detection.backbone_utils import BackboneWithFPN  # isort: skip

# Of the shorter and the longer side: small images are enough to tell networks apart.
SHORT, LONG = 160, 256
# How many proposals: what stands for torchvision's operators here is slow.
FEW = {
    "rpn_pre_nms_top_n_train": 300,
    "rpn_post_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 300,
    "rpn_post_nms_top_n_test": 150,
    "box_batch_size_per_image": 128,
}
# Heights and widths: a wide image, a tall one, one whose longer side limits it.
SIZES = ((150, 200), (210, 160), (120, 264))


def mask_rcnn(version=1, num_classes=6, seed=0, **arguments):
    """torchvision's network of COCO's weights, of the first or second version, in evaluation.

    Args:
        version: 1 or 2.
        num_classes: int, the background among them.
        seed: int.
        **arguments: of torchvision's `MaskRCNN`.
    """
    make = {1: detection.maskrcnn_resnet50_fpn, 2: detection.maskrcnn_resnet50_fpn_v2}[version]
    torch.manual_seed(seed)
    model = make(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes,
        **{"min_size": SHORT, "max_size": LONG, **FEW, **arguments},
    ).eval()
    enliven(model, lambda image: model(as_list(image)), seed)
    return model


class _Body(resnet.ResNet):
    """torchvision's ResNet whose first stage has `filters` channels in place of 64."""

    def __init__(self, block, layers, filters):
        self.part = 64 // filters
        super().__init__(block, layers)
        self.conv1 = torch.nn.Conv2d(3, filters, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(filters)

    def _make_layer(self, block, planes, *arguments, **options):
        self.inplanes = self.inplanes if planes > 64 else 64 // self.part
        return super()._make_layer(block, planes // self.part, *arguments, **options)


def narrow(depth=50, filters=4, width=8, units=16, num_classes=6, seed=0, **arguments):
    """torchvision's network of the first version with fewer channels, for what has to be small."""
    torch.manual_seed(seed)
    blocks = {18: (resnet.BasicBlock, [2, 2, 2, 2]), 50: (resnet.Bottleneck, [3, 4, 6, 3])}
    body = _Body(*blocks[depth], filters)
    names = {f"layer{i + 1}": str(i) for i in range(4)}
    channels = [filters * 2**i * blocks[depth][0].expansion for i in range(4)]
    backbone = BackboneWithFPN(body, names, channels, width)
    model = detection.MaskRCNN(
        backbone,
        rpn_anchor_generator=detection.mask_rcnn._default_anchorgen(),
        box_head=detection.faster_rcnn.TwoMLPHead(width * 49, units),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(units, num_classes),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(width, [width] * 4, 1),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(width, width, num_classes),
        **{"min_size": SHORT, "max_size": LONG, **FEW, **arguments},
    ).eval()
    enliven(model, lambda image: model(as_list(image)), seed)
    return model


# The deviation of what the last layers give, by the end of their names: scores that differ from
# box to box, and boxes that move, but not out of the image.
_LIVELY = {
    "cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.1,
    "box_predictor.cls_score": 2.0,
    "box_predictor.bbox_pred": 0.5,
    "mask_fcn_logits": 1.5,
}


def enliven(model, forward, seed=0, lively=None):
    """Random weights and statistics (see `parity.randomize`), and lively results."""
    generator = torch.Generator().manual_seed(seed)
    lively = lively or _LIVELY
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.ConvTranspose2d)):
                conv = isinstance(module, torch.nn.ConvTranspose2d)
                reads = module.weight.shape[0 if conv else 1]
                noise = torch.randn(module.weight.shape, generator=generator)
                # What all inputs have in common is no part of what differs between boxes, and would
                # make its rounding errors large.
                noise = noise - noise.mean(0 if conv else 1, keepdim=True)
                module.weight.copy_(noise * (2 / reads) ** 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    randomize(model, forward, seed)

    def scale(module, _, outputs):
        module.hook.remove()
        channels = outputs.movedim(1, -1).flatten(0, -2)
        factor = module.wanted / channels.std(0).mean()
        # No class is every box's: what differs from box to box decides.
        noise = torch.randn(module.bias.shape, generator=generator) * 0.1 * module.wanted
        bias = (module.bias - channels.mean(0)) * factor + noise
        shape = (1, -1) + (1,) * (outputs.ndim - 2)
        changed = (outputs - module.bias.view(shape)) * factor + bias.view(shape)
        module.weight.mul_(factor)
        module.bias.copy_(bias)
        return changed

    with torch.no_grad():
        for name, module in model.named_modules():
            wanted = next((w for end, w in lively.items() if name.endswith(end)), None)
            if wanted is not None:
                module.wanted = wanted
                module.hook = module.register_forward_hook(scale)
        forward(images(*SIZES[0]))


def as_list(image):
    """(B, H, W, 3) uint8 RGB -> the list of (3, H, W) in 0..1 that torchvision's networks read."""
    return [
        torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))).float() / 255 for x in image
    ]


def pictures(sizes=SIZES, seed=0):
    """One uint8 image (H, W, 3) of each size."""
    return [images(*size, seed=seed + i)[0] for i, size in enumerate(sizes)]


def record(model, pictures):
    """What every part makes of a list of uint8 images (H, W, 3), as NumPy arrays.

    Returns:
        dict: "image" (B, H, W, 3) resized and padded by zeros, in 0..255, "size" (B, 2) of what is
        inside; "maps" by name, "logits" and "codes" of each level, channels last; and of each image
        "proposals", "objectness", and "boxes" in pixels of the resized image, "scores", "labels",
        "masks" (n, 28, 28).
    """
    found = {}

    def channels_last(tensor):
        return tensor.numpy().transpose(0, 2, 3, 1)

    with torch.no_grad():
        batch, _ = model.transform([as_list(picture[None])[0] for picture in pictures])
        mean, std = (
            torch.tensor(v).view(-1, 1, 1)
            for v in (model.transform.image_mean, model.transform.image_std)
        )
        x = (batch.tensors * std + mean) * 255
        for image, (height, width) in zip(x, batch.image_sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        found["image"] = channels_last(x)
        found["size"] = np.array(batch.image_sizes, "int32")
        maps = model.backbone(batch.tensors)
        found["maps"] = {name: channels_last(m) for name, m in maps.items()}
        logits, codes = model.rpn.head(list(maps.values()))
        found["logits"] = [channels_last(v) for v in logits]
        found["codes"] = [channels_last(v) for v in codes]
        sigmoids = []
        filter_proposals = model.rpn.filter_proposals

        def overhear(*arguments):
            boxes, scores = filter_proposals(*arguments)
            sigmoids.extend(scores)
            return boxes, scores

        model.rpn.filter_proposals = overhear
        proposals, _ = model.rpn(batch, maps)
        del model.rpn.filter_proposals
        found["proposals"] = [p.numpy() for p in proposals]
        found["objectness"] = [s.numpy() for s in sigmoids]
        results, _ = model.roi_heads(maps, proposals, batch.image_sizes)
        for name in ("boxes", "scores", "labels", "masks"):
            found[name] = [each[name].numpy() for each in results]
        found["masks"] = [m[:, 0] for m in found["masks"]]
    return found


def truth(sizes, count, num_classes, seed=0):
    """Random true boxes, labels (from 1) and masks (ellipses and rectangles) of images."""
    rng, targets = np.random.default_rng(seed), []
    for (height, width), number in zip(sizes, count, strict=True):
        side = rng.uniform(0.15, 0.7, (number, 2)) * [width, height]
        corner = rng.uniform(0, 1, (number, 2)) * ([width, height] - side)
        boxes = np.concatenate([corner, corner + side], 1).astype("float32")
        y, x = np.mgrid[:height, :width] + 0.5
        masks = []
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
            if i % 2:
                across, down = 2 * (x - x1) / (x2 - x1) - 1, 2 * (y - y1) / (y2 - y1) - 1
                inside &= across**2 + down**2 <= 1
            masks.append(inside)
        targets.append(
            {
                "boxes": torch.from_numpy(boxes),
                "labels": torch.from_numpy(rng.integers(1, num_classes, number)),
                "masks": torch.from_numpy(np.stack(masks).astype("uint8")),
            }
        )
    return targets


def record_losses(model, image, size, targets, seed=0):
    """The five losses of a batch, and what was drawn for them.

    Normalisations keep their statistics, as torchvision's frozen ones do.

    Args:
        model: torchvision's, in evaluation; it comes back so.
        image: float array (B, H, W, 3) in 0..255, padded by zeros.
        size: int array (B, 2).
        targets: of `truth`, in pixels of `image`.
        seed: int, of what torchvision draws.

    Returns:
        dict: "losses" by torchvision's names; of each image "anchors", an array of 1 (drawn,
        positive), 0 (drawn, negative) and -1 of all anchors; "rois" (n, 4), "roi_labels" (n,) from
        0, the background, "roi_matches" (n,).
    """
    found = {"anchors": [], "rois": [], "roi_labels": [], "roi_matches": []}
    colors = model.transform.image_mean, model.transform.image_std
    mean, std = (np.array(color, "float32") * 255 for color in colors)
    x = (image - mean) / std
    for one, (height, width) in zip(x, size, strict=True):
        one[height:], one[:, width:] = 0, 0
    x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    batch = detection.image_list.ImageList(x, [tuple(map(int, s)) for s in size])
    sampler, select = model.rpn.fg_bg_sampler, model.roi_heads.select_training_samples

    def draw(labels):
        positive, negative = sampler(labels)
        for p, n in zip(positive, negative, strict=True):
            found["anchors"].append((p.int() - (1 - p.int() - n.int())).numpy())
        return positive, negative

    def draw_rois(proposals, targets):
        rois, matches, labels, codes = select(proposals, targets)
        for name, values in (("rois", rois), ("roi_labels", labels), ("roi_matches", matches)):
            found[name] = [v.detach().numpy() for v in values]
        return rois, matches, labels, codes

    torch.manual_seed(seed)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    model.rpn.fg_bg_sampler, model.roi_heads.select_training_samples = draw, draw_rois
    try:
        with torch.no_grad():
            maps = model.backbone(batch.tensors)
            proposals, losses = model.rpn(batch, maps, targets)
            _, others = model.roi_heads(maps, proposals, batch.image_sizes, targets)
    finally:
        model.rpn.fg_bg_sampler = sampler
        del model.roi_heads.select_training_samples
        model.eval()
    found["losses"] = {name: float(value) for name, value in (losses | others).items()}
    return found


def save(model, path):
    """As torchvision's files are: the tensors by name."""
    torch.save(model.state_dict(), path)
