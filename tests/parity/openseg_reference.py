"""The official ISANet as its description has it, in PyTorch: names of tensors and all.

Written for the tests from what the official code computes: deep stem of 64, 64, 128; max pooling
that rounds up; first block of a dilated stage at half its dilation; in-place activated BN, which
scales by |weight| + eps and ends in LeakyReLU 0.01 in the heads; value without bias; concatenation
[input, context]; BGR input; logits resized with align_corners.
"""

import torch
from torch import nn
from torch.nn import functional

MEAN_BGR = (102.9801, 115.9465, 122.7717)


class InPlaceABN(nn.Module):
    """Batch normalisation with its activation: `slope` 0.01, or 1 for none."""

    def __init__(self, channels, slope=0.01, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.slope, self.eps = slope, eps

    def forward(self, x):
        scale = self.weight.abs() + self.eps
        x = functional.batch_norm(
            x, self.running_mean, self.running_var, scale, self.bias, False, 0.1, self.eps
        )
        return torch.where(x >= 0, x, self.slope * x)


def conv(inputs, outputs, kernel=1, stride=1, dilation=1, bias=False):
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride, dilation, shortcut):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width), InPlaceABN(width, 1)
        self.conv2 = conv(width, width, 3, stride, dilation)
        self.bn2 = InPlaceABN(width, 1)
        self.conv3, self.bn3 = conv(width, 4 * width), InPlaceABN(4 * width, 1)
        self.downsample = None
        if shortcut:
            self.downsample = nn.Sequential(
                conv(inputs, 4 * width, 1, stride), InPlaceABN(4 * width, 1)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    def __init__(self, blocks, filters):
        super().__init__()
        self.resinit = nn.Sequential()
        widths = (3, filters, filters, 2 * filters)
        for i in (1, 2, 3):
            stride = 2 if i == 1 else 1
            self.resinit.add_module(f"conv{i}", conv(widths[i - 1], widths[i], 3, stride))
            self.resinit.add_module(f"bn{i}", InPlaceABN(widths[i], 1))
            self.resinit.add_module(f"relu{i}", nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        inputs = 2 * filters
        for stage, (count, dilation) in enumerate(zip(blocks, (1, 1, 2, 4), strict=True), 1):
            width, layers = filters * 2 ** (stage - 1), []
            for i in range(count):
                first = i == 0
                layers.append(
                    Bottleneck(
                        inputs,
                        width,
                        2 if first and stage == 2 else 1,
                        max(dilation // 2, 1) if first else dilation,
                        first,
                    )
                )
                inputs = 4 * width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))

    def forward(self, x):
        x = self.maxpool(self.resinit(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x, self.layer4(x)


class SelfAttention(nn.Module):
    def __init__(self, channels, keys):
        super().__init__()

        def twice():
            return nn.Sequential(
                conv(channels, keys), InPlaceABN(keys), conv(keys, keys), InPlaceABN(keys)
            )

        self.f_key, self.f_query = twice(), twice()
        self.f_value = conv(channels, channels)
        self.W = nn.Sequential(conv(channels, channels), InPlaceABN(channels))
        self.scale = keys**-0.5

    def forward(self, x):
        """Of groups (N, C, h, w): every position reads every other of its group."""
        query, key, value = (f(x).flatten(2) for f in (self.f_query, self.f_key, self.f_value))
        weights = torch.softmax(self.scale * torch.einsum("nci,ncj->nij", query, key), dim=2)
        return self.W(torch.einsum("nij,ncj->nci", weights, value).reshape(x.shape))


class Stage(nn.Module):
    def __init__(self, channels, keys, partition):
        super().__init__()
        self.long_range_sa = SelfAttention(channels, keys)
        self.short_range_sa = SelfAttention(channels, keys)
        self.partition = partition

    def forward(self, x):
        """Groups are taken out by slices and put back where they were."""
        height, width = x.shape[2:]
        p, q = self.partition
        bottom, right = -height % p, -width % q
        x = functional.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        long = [(slice(i, None, p), slice(j, None, q)) for i in range(p) for j in range(q)]
        short = [
            (slice(i, i + p), slice(j, j + q))
            for i in range(0, x.shape[2], p)
            for j in range(0, x.shape[3], q)
        ]
        for attention, groups in ((self.long_range_sa, long), (self.short_range_sa, short)):
            found = attention(torch.cat([x[:, :, i, j] for i, j in groups]))
            y = torch.empty_like(x)
            for (i, j), group in zip(groups, found.split(len(x)), strict=True):
                y[:, :, i, j] = group
            x = y
        top, left = bottom // 2, right // 2
        return x[:, :, top : top + height, left : left + width]


class Module(nn.Module):
    def __init__(self, channels, keys, partitions):
        super().__init__()
        self.stages = nn.ModuleList([Stage(channels, keys, p) for p in partitions])
        wide = channels * len(partitions)
        if len(partitions) > 1:
            self.up_conv = nn.Sequential(conv(channels, wide), InPlaceABN(wide))
        self.conv_bn = nn.Sequential(conv(2 * wide, channels), InPlaceABN(channels), nn.Identity())

    def forward(self, x):
        context = torch.cat([stage(x) for stage in self.stages], dim=1)
        if len(self.stages) > 1:
            x = self.up_conv(x)
        return self.conv_bn(torch.cat([x, context], dim=1))


class OfficialISANet(nn.Module):
    """Images (B, 3, H, W), BGR minus `MEAN_BGR` -> main and auxiliary logits at full size."""

    def __init__(self, num_classes=19, blocks=(3, 4, 6, 3), partitions=((8, 8),), filters=64):
        super().__init__()
        channels = 8 * filters
        self.backbone = Backbone(blocks, filters)
        self.isa_head = nn.Sequential(
            conv(32 * filters, channels, 3, bias=True),
            InPlaceABN(channels),
            Module(channels, channels // 2, partitions),
        )
        self.cls_head = conv(channels, num_classes, bias=True)
        self.dsn_head = nn.Sequential(
            conv(16 * filters, channels, 3, bias=True),
            InPlaceABN(channels),
            nn.Identity(),
            conv(channels, num_classes, bias=True),
        )

    def forward(self, x):
        middle, last = self.backbone(x)
        found = self.cls_head(self.isa_head(last)), self.dsn_head(middle)
        return [
            functional.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True)
            for y in found
        ]
