"""Writes tests/golden: narrow ISANets of mmsegmentation's and a Mask R-CNN of torchvision's.

make golden
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import golden  # noqa: E402
import hrnet_reference  # noqa: E402
import mmseg_reference as reference  # noqa: E402
import torchvision_reference  # noqa: E402
from parity import images  # noqa: E402

SIZE = (41, 57)


NARROW = {"filters": 4, "modules": (1, 2, 1), "blocks": 1, "channels": 12, "keys": 6}


def write(model, checkpoint, examples):
    """The tensors of a network, and what it answers to an image in both ways of resizing."""
    image, found = images(*SIZE), {}
    for align_corners in (False, True):
        for head in (model.decode_head, model.auxiliary_head):
            head.align_corners = align_corners
        name = "align_corners" if align_corners else "half_pixel"
        main_logits, auxiliary_logits = reference.logits(model, image)
        found |= {"image": image, name: main_logits, f"auxiliary_{name}": auxiliary_logits}
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    np.savez_compressed(checkpoint, **state)
    np.savez_compressed(examples, **found)


def write_mask_rcnn():
    """A Mask R-CNN of torchvision's, and all that it makes of two images, one of them padded.

    Its numbers are kept in half precision, and rounded to it before.
    """
    before, after = (
        golden.MASK_RCNN_FEW["proposals_before"],
        golden.MASK_RCNN_FEW["proposals_after"],
    )
    few = {
        "rpn_pre_nms_top_n_train": before[0],
        "rpn_pre_nms_top_n_test": before[1],
        "rpn_post_nms_top_n_train": after[0],
        "rpn_post_nms_top_n_test": after[1],
        "box_batch_size_per_image": golden.MASK_RCNN_FEW["box_samples"],
        "rpn_batch_size_per_image": golden.MASK_RCNN_FEW["rpn_samples"],
        "box_detections_per_img": golden.MASK_RCNN_FEW["max_detections"],
    }
    # Neither is resized: images are kept as bytes.
    model = torchvision_reference.narrow(18, min_size=64, max_size=96, **few)
    state = {name: v.numpy() for name, v in model.state_dict().items()}
    state = {k: v.astype("float16") for k, v in state.items() if v.dtype == np.float32}
    rounded = {name: torch.from_numpy(v.astype("float32")) for name, v in state.items()}
    model.load_state_dict(rounded, strict=False)
    found = torchvision_reference.record(
        model, torchvision_reference.pictures(((64, 96), (64, 80)))
    )
    targets = torchvision_reference.truth(found["size"], (3, 2), 6)
    drawn = torchvision_reference.record_losses(model, found["image"], found["size"], targets)
    kept = {"image": np.round(found["image"]).astype("uint8"), "size": found["size"]}
    assert np.abs(found["image"] - kept["image"]).max() < 1e-3
    kept["logits"] = np.concatenate([x.reshape(2, -1) for x in found["logits"]], 1)
    for name in ("boxes", "scores", "labels", "masks", "proposals"):
        for i, value in enumerate(found[name]):
            kept[f"{name}{i}"] = value.astype("float16") if name == "masks" else value
    for name in ("anchors", "rois", "roi_labels", "roi_matches"):
        kept[name] = np.stack(drawn[name])
    for i, target in enumerate(targets):
        kept |= {f"true_{name}{i}": value.numpy() for name, value in target.items()}
    kept |= {name: np.float64(value) for name, value in drawn["losses"].items()}
    np.savez_compressed(golden.MASK_RCNN, **state)
    np.savez_compressed(golden.MASK_RCNN_EXAMPLES, **kept)


def main():
    golden.FOLDER.mkdir(exist_ok=True)
    write(reference.isanet(50, 5, filters=4), golden.CHECKPOINT, golden.EXAMPLES)
    write(hrnet_reference.isanet(2, 5, **NARROW), golden.HRNET, golden.HRNET_EXAMPLES)
    write_mask_rcnn()
    size = sum(path.stat().st_size for path in golden.FOLDER.iterdir())
    print(f"{golden.FOLDER}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
