"""Networks in PyTorch, and what is called of them, on a CPU or a GPU; needs PyTorch alone."""

import math

import torch
from torch import nn

RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
AUXILIARY = 0.4  # the weight of its loss


def conv(reads, filters, kernel_size=1, stride=1, dilation=1, relu=True):
    """Convolution, batch normalisation and, unless told otherwise, ReLU."""
    padding = dilation * (kernel_size // 2)
    layer = nn.Conv2d(reads, filters, kernel_size, stride, padding, dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(filters), *([nn.ReLU()] if relu else []))


class Attention(nn.Module):
    """The block of `isa_tf.layers.SelfAttention2D`: matmul, softmax, matmul.

    Args:
        width: int, channels.
        keys: int, those of queries and keys.
        kernels: bool, whether `scaled_dot_product_attention`, which keeps no affinity, does the
            three. Defaults to `False`.
    """

    def __init__(self, width, keys, kernels=False):
        super().__init__()
        self.scale, self.kernels = keys**-0.5, kernels
        self.query = nn.Sequential(conv(width, keys), conv(keys, keys))
        self.key = nn.Sequential(conv(width, keys), conv(keys, keys))
        self.value = nn.Conv2d(width, width, 1, bias=False)
        self.output = conv(width, width)

    def forward(self, x):
        q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        if self.kernels:
            q, k, v = (part.transpose(1, 2)[:, None] for part in (q, k, v))
            gathered = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
            gathered = gathered[:, 0].transpose(1, 2)
        else:
            affinity = torch.softmax(q.transpose(1, 2) @ k * self.scale, -1)
            gathered = v @ affinity.transpose(1, 2)
        return self.output(gathered.reshape(x.shape))


class Module(nn.Module):
    """Interlaced sparse self-attention as a module, or dense attention in the same form.

    Args:
        width, keys, kernels: see `Attention`.
        partition: int; `None` for dense attention. Defaults to 8.
    """

    def __init__(self, width, keys, partition=8, kernels=False):
        super().__init__()
        self.partition = partition
        count = 1 if partition is None else 2
        self.attentions = nn.ModuleList(Attention(width, keys, kernels) for _ in range(count))
        self.fusion = conv(2 * width, width)

    def forward(self, x):
        gathered = self.attentions[0](x) if self.partition is None else self.interlaced(x)
        return self.fusion(torch.cat([gathered, x], 1))

    def interlaced(self, x):
        """The long-range attention, then the short-range one, on the padded map."""
        (b, c, h, w), p = x.shape, self.partition
        high, wide = math.ceil(h / p), math.ceil(w / p)
        top, left = (high * p - h) // 2, (wide * p - w) // 2
        ends = (left, wide * p - w - left, top, high * p - h - top)
        y = nn.functional.pad(x, ends) if any(ends) else x
        y = y.view(b, c, high, p, wide, p).permute(0, 3, 5, 1, 2, 4)
        y = self.attentions[0](y.reshape(-1, c, high, wide))
        y = y.view(b, p, p, c, high, wide).permute(0, 4, 5, 3, 1, 2)
        y = self.attentions[1](y.reshape(-1, c, p, p))
        y = y.view(b, high, wide, c, p, p).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(b, c, high * p, wide * p)[:, :, top : top + h, left : left + w]


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3, and 1x1 to four times the width."""

    def __init__(self, reads, width, stride, dilation):
        super().__init__()
        self.convs = nn.Sequential(
            conv(reads, width),
            conv(width, width, 3, stride, dilation),
            conv(width, 4 * width, relu=False),
        )
        self.shortcut = nn.Identity()
        if stride > 1 or reads != 4 * width:
            self.shortcut = conv(reads, 4 * width, stride=stride, relu=False)

    def forward(self, x):
        return torch.relu(self.convs(x) + self.shortcut(x))


class Head(nn.Module):
    """A 3x3 convolution of one of the maps, a module, and the classifier."""

    def __init__(self, index, reads, width, num_classes, module=None):
        super().__init__()
        self.index = index
        self.layers = nn.Sequential(
            conv(reads, width, 3),
            module or nn.Identity(),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, num_classes, 1),
        )

    def forward(self, maps):
        return self.layers(maps[self.index])


class ISANet(nn.Module):
    """What `tools.mmseg_models.isanet` is, ResNet-50 of output stride 8, without mmsegmentation.

    Args:
        num_classes: int. Defaults to 19.
    """

    def __init__(self, num_classes=19):
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, 32, 3, 2), conv(32, 32, 3), conv(32, 64, 3), nn.MaxPool2d(3, 2, 1)
        )
        reads, stages = 64, []
        for width, blocks, stride, dilation in (
            (64, 3, 1, 1),
            (128, 4, 2, 1),
            (256, 6, 1, 2),
            (512, 3, 1, 4),
        ):
            stage = []
            for number in range(blocks):
                # The first block of a stage is dilated as the stage before it.
                rate = max(dilation // 2, 1) if number == 0 else dilation
                stage.append(Bottleneck(reads, width, stride if number == 0 else 1, rate))
                reads = 4 * width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.decode_head = Head(3, 2048, 512, num_classes, Module(512, 256))
        self.auxiliary_head = Head(2, 1024, 256, num_classes)

    def extract_feat(self, x):
        """The maps of the four stages."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def forward_of(model, what):
    """The function of an image or a map that is timed of a network.

    Args:
        model: an ISANet, of here or of mmsegmentation, for "model" and "head"; else a module.
        what: str, what of it.
    """

    def forward(x):
        if what == "head":
            return model.decode_head([None, None, None, x])
        if what != "model":
            return model(x)
        return resized(model.decode_head(model.extract_feat(x)), x)

    return forward


def loss_of(model):
    """The function of (images, labels) whose gradients train an ISANet, see `forward_of`."""

    def loss(x, labels):
        maps = model.extract_feat(x)
        total = 0
        for head, weight in ((model.decode_head, 1.0), (model.auxiliary_head, AUXILIARY)):
            logits = resized(head(maps), x)
            total = total + weight * nn.functional.cross_entropy(logits, labels)
        return total

    return loss


def resized(logits, image):
    """Logits as large as their image."""
    return nn.functional.interpolate(logits, image.shape[2:], mode="bilinear")


def step_of(model, loss, half):
    """A function of (images, labels) that trains by one step of SGD and gives the loss.

    Args:
        model: module.
        loss: of `loss_of`, compiled or not.
        half: context of autocast.
    """
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def step(images, labels):
        optimizer.zero_grad(set_to_none=True)
        with half:
            value = loss(images, labels)
        value.backward()
        optimizer.step()
        return value.detach()

    return step
