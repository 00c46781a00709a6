"""Makes a PaddleSeg ISANet of random weights, and what it answers to random images.

    python3.11 -m venv PADDLE
    PADDLE/bin/pip install paddlepaddle==3.3.1 paddleseg==2.8.0 'numpy<2'
    PADDLE/bin/python tests/parity/make_paddleseg.py --output=FOLDER

Writes into the folder

* `model.pdparams`, the state dict as `paddle.save` writes it, with parameters for attributes;
* `outputs.npz`: for every size HxW of `SIZES`, `image_HxW` (H, W, 3), uint8 RGB, and
  `logits_HxW` and `auxiliary_HxW` (H, W, classes), float32, in evaluation mode; beside them
  depth, num_classes, align_corners, output_stride, and the mean and std (of 255) of the images.

Batch normalisation's statistics are those of what images send through the model, changed at
random: activations neither grow nor die, and an image does not end in one class.
"""

import argparse
from pathlib import Path

import numpy as np
import paddle
from paddleseg.models import ISANet
from paddleseg.models.backbones import ResNet50_vd, ResNet101_vd
from paddleseg.transforms import Normalize

BACKBONES = {50: ResNet50_vd, 101: ResNet101_vd}
SIZES = ((128, 128), (129, 257), (97, 161))
OUTPUT_STRIDE = 8
# Residual branches, queries and keys of full size would make rounding errors grow from layer to
# layer, as they do in no trained network: what the scales of these normalisations are.
CALM = {".conv2._batch_norm": 0.3, "query_project": 0.5, "key_project": 0.5}


def random_image(rng, height, width):
    """Coloured blocks under noise, that the classes may differ from place to place."""
    blocks = rng.uniform(0, 255, (height // 16 + 1, width // 16 + 1, 3))
    image = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return (0.8 * image + 0.2 * rng.uniform(0, 255, image.shape)).astype(np.uint8)


def preprocess(*images):
    """(H, W, 3) each -> (B, 3, H, W), as the validation transforms do."""
    normalized = [Normalize()({"img": image})["img"] for image in images]
    return paddle.to_tensor(np.stack(normalized).transpose(0, 3, 1, 2))


def randomize(model, rng, images):
    """Draws every number in the model."""

    def assign(tensor, values):
        tensor.set_value(np.asarray(values, np.float32).reshape(tensor.shape))

    def measure(norm, inputs):
        x = inputs[0].numpy()
        mean = x.mean((0, 2, 3))
        # Where an attention gathers much the same everywhere, its variance would make a rounding
        # error of the mean large.
        variance = np.maximum(np.maximum(x.var((0, 2, 3)), (0.5 * mean) ** 2), 1e-3)
        assign(norm._mean, mean + rng.normal(0, 0.3, mean.shape) * np.sqrt(variance))
        assign(norm._variance, variance * rng.uniform(0.5, 1.5, variance.shape))

    def center(conv, inputs):
        mean = inputs[0].numpy().mean((0, 2, 3))
        shift = conv.weight.numpy()[..., 0, 0] @ mean  # all that have a bias are 1x1
        assign(conv.bias, rng.normal(0, 0.1, shift.shape) - shift)

    hooks = []
    for name, layer in model.named_sublayers():
        if isinstance(layer, paddle.nn.Conv2D):
            fan_in = np.prod(layer.weight.shape[1:])
            assign(layer.weight, rng.normal(0, np.sqrt(2 / fan_in), layer.weight.shape))
            if layer.bias is not None:
                hooks.append(layer.register_forward_pre_hook(center))
        elif isinstance(layer, paddle.nn.BatchNorm2D):
            calm = next((c for part, c in CALM.items() if part in name), 1.0)
            assign(layer.weight, calm * rng.uniform(0.5, 1.5, layer.weight.shape))
            assign(layer.bias, calm * rng.normal(0, 0.3, layer.bias.shape))
            hooks.append(layer.register_forward_pre_hook(measure))
    model(preprocess(*images))
    for hook in hooks:
        hook.remove()


def main(args):
    rng = np.random.default_rng(args.seed)
    model = ISANet(
        num_classes=args.num_classes,
        backbone=BACKBONES[args.depth](output_stride=OUTPUT_STRIDE),
        isa_channels=256,
        align_corners=args.align_corners,
    )
    model.eval()
    normalize = Normalize()
    arrays = {
        "depth": args.depth,
        "num_classes": args.num_classes,
        "align_corners": args.align_corners,
        "output_stride": OUTPUT_STRIDE,
        "mean": np.broadcast_to(normalize.mean * 255, 3),
        "std": np.broadcast_to(normalize.std * 255, 3),
    }
    with paddle.no_grad():
        randomize(model, rng, [random_image(rng, 128, 128) for _ in range(8)])
        for height, width in SIZES:
            image = random_image(rng, height, width)
            outputs = model(preprocess(image))
            arrays[f"image_{height}x{width}"] = image
            for name, tensor in zip(("logits", "auxiliary"), outputs, strict=True):
                logits = tensor.numpy()[0].transpose(1, 2, 0)
                arrays[f"{name}_{height}x{width}"] = logits
                shares = np.bincount(logits.argmax(-1).ravel(), minlength=args.num_classes)
                print(
                    f"{name} {height}x{width}: largest {np.abs(logits).max():.3g}, "
                    f"classes won {np.round(shares / shares.sum(), 3).tolist()}"
                )

    args.output.mkdir(parents=True, exist_ok=True)
    paddle.save(model.state_dict(), str(args.output / "model.pdparams"))
    np.savez_compressed(args.output / "outputs.npz", **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, required=True, help="The folder to write into.")
    parser.add_argument("--depth", type=int, choices=BACKBONES, default=50)
    parser.add_argument("--num_classes", type=int, default=7)
    parser.add_argument("--align_corners", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
