"""What the comparisons with other frameworks share."""

import numpy as np
import torch


def images(*size, batch=1, seed=0):
    """Random uint8 RGB images (B, H, W, 3): coloured blocks under noise, so that places differ."""
    rng, (height, width) = np.random.default_rng(seed), size
    blocks = rng.uniform(0, 255, (batch, height // 16 + 1, width // 16 + 1, 3))
    image = blocks.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return (0.8 * image + 0.2 * rng.uniform(0, 255, image.shape)).astype("uint8")


def check(pairs):
    """For pairs of logits (B, H, W, classes), ours and theirs, of images of several sizes.

    They agree to 1e-4 of the largest magnitude of each, and on the class of 99.99 % of all pixels.
    """
    same, count = 0, 0
    for found, expected in pairs:
        found = np.asarray(found)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
        # Logits that are the same everywhere would prove little.
        assert np.ptp(expected, axis=(1, 2)).max() > 0.2 * np.abs(expected).max()
        same += (found.argmax(-1) == expected.argmax(-1)).sum()
        count += expected[..., 0].size
    assert same >= 0.9999 * count, f"{count - same} of {count} pixels differ"


# Parts of the names of normalisations, and what their scales are multiplied by.
CALM = {"bn3": 0.3, "query": 0.5, "key": 0.5}


def randomize(model, forward, seed=0):
    """Random weights and statistics that hide no layer.

    The statistics are those of what `forward`, a function of images, sends through the model,
    changed at random: activations neither grow nor die, no softmax saturates, and images
    do not end in one class.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    def blend(module, name, value):
        """The mean over the calls of a module so far."""
        calls = module.calls.setdefault(name, [])
        calls.append(value)
        return sum(calls) / len(calls)

    def measure(module, inputs):
        (x,) = inputs
        mean = blend(module, "mean", x.mean((0, 2, 3)))
        square = blend(module, "square", (x**2).mean((0, 2, 3)))
        # Where an attention gathers much the same everywhere, its variance would make a rounding
        # error of the mean large.
        variance = torch.maximum(square - mean**2, (0.5 * mean) ** 2).clamp(min=1e-3)
        module.running_mean.copy_(mean + variance**0.5 * module.noise[0])
        module.running_var.copy_(variance * module.noise[1])

    def center(module, inputs):
        (x,) = inputs
        shift = blend(module, "shift", module.weight[..., 0, 0] @ x.mean((0, 2, 3)))
        module.bias.copy_(module.noise - shift)

    hooks = []
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "running_mean"):
                # Residual branches, queries and keys of full size would make rounding errors grow
                # from layer to layer, as they do in no trained network.
                calm = next((c for part, c in CALM.items() if part in name), 1.0)
                module.weight.copy_(uniform(module.weight, 0.5, 1.5) * calm)
                module.bias.copy_(uniform(module.bias, -0.3, 0.5) * calm)
                module.calls = {}
                module.noise = [uniform(module.bias, *r) for r in ((-0.3, 0.3), (0.7, 1.4))]
                hooks.append(module.register_forward_pre_hook(measure))
            elif isinstance(module, torch.nn.Conv2d):
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * module.weight[0].numel() ** -0.5)
                if module.bias is not None and module.kernel_size == (1, 1):
                    module.calls, module.noise = {}, uniform(module.bias, -0.2, 0.2)
                    hooks.append(module.register_forward_pre_hook(center))
                elif module.bias is not None:
                    module.bias.copy_(uniform(module.bias, -0.3, 0.3))
        for size in ((129, 161), (41, 57), (97, 97)):
            forward(images(*size))
    for hook in hooks:
        hook.remove()
