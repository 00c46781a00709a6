"""Interlaced sparse self-attention once more, in NumPy float64 and explicit loops.

Written from the definition alone; groups are lists of (row, column) of the padded map.
"""

import itertools

import numpy as np

EPSILON = 1e-5


def padding(size, partition):
    """Before and after one axis: pad // 2, the rest."""
    pad = (-size) % partition
    return pad // 2, pad - pad // 2


def pad(image, partition):
    """(H, W, C) -> the zero-padded map and the bool map of the image's positions."""
    amounts = [padding(n, p) for n, p in zip(image.shape[:2], partition, strict=True)]
    padded = np.pad(image, [*amounts, (0, 0)])
    return padded, np.pad(np.ones(image.shape[:2], bool), amounts)


def groups(height, width, partition, kind):
    """All groups of a map, each a list of positions in row-major order."""
    p_h, p_w = partition
    found = {}
    for row, column in itertools.product(range(height), range(width)):
        if kind == "long":
            key = (row % p_h, column % p_w)
        else:
            key = (row // p_h, column // p_w)
        found.setdefault(key, []).append((row, column))
    return [found[key] for key in sorted(found)]


def spread(heard, partition, kind):
    """Which positions have heard of the image after an attention."""
    after = np.zeros_like(heard)
    for group in groups(*heard.shape, partition, kind):
        if any(heard[position] for position in group):
            for position in group:
                after[position] = True
    return after


def softmax(logits):
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def conv_norm_relu(x, layer):
    """1x1 convolution, batch normalisation by the moving statistics, ReLU."""
    kernel = np.asarray(layer.conv.kernel, np.float64)[0, 0]
    norm = layer.norm
    gamma, beta, mean, variance = (
        np.asarray(w, np.float64)
        for w in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    y = (x @ kernel - mean) / np.sqrt(variance + EPSILON) * gamma + beta
    return np.maximum(y, 0.0)


def attention(x, layer, partition, kind, heard):
    """One attention over a padded map (H, W, C); `heard` is its key mask or None."""
    query, key = x, x
    for step in layer.query:
        query = conv_norm_relu(query, step)
    for step in layer.key:
        key = conv_norm_relu(key, step)
    value = x @ np.asarray(layer.value.kernel, np.float64)[0, 0]
    context = np.zeros_like(value)
    for group in groups(*x.shape[:2], partition, kind):
        keys = [p for p in group if heard is None or heard[p]]
        # A group without keys holds no position of the image: what it gives must not matter.
        for position in group if keys else ():
            logits = np.array([query[position] @ key[p] for p in keys])
            weights = softmax(logits / np.sqrt(query.shape[-1]))
            context[position] = sum(w * value[p] for w, p in zip(weights, keys, strict=True))
    return conv_norm_relu(context, layer.output_conv)


def interlaced(x, layer, mask=True, partitions=None):
    """The whole module on one map (H, W, C), with an InterlacedSparseAttention's weights."""
    kinds = layer.order.split("_") * layer.depth
    partitions = partitions or layer.partitions
    attentions = iter(layer.attentions)
    x = np.asarray(x, np.float64)
    maps = []
    for partition in partitions:
        y, heard = pad(x, partition)
        image = heard.copy()
        for kind in kinds:
            y = attention(y, next(attentions), partition, kind, heard if mask else None)
            heard = spread(heard, partition, kind)
        maps.append(y[image].reshape(*x.shape[:2], -1))
    if not layer.fuse:
        return np.concatenate(maps, axis=-1)
    maps.append(conv_norm_relu(x, layer.widen) if len(partitions) > 1 else x)
    return conv_norm_relu(np.concatenate(maps, axis=-1), layer.fusion)
