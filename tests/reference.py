"""Interlaced sparse self-attention once more, in NumPy float64 and explicit loops.

Written from the definition alone; groups are lists of (row, column) of the padded map.
"""

import functools
import itertools

import numpy as np

EPSILON = 1e-5


def padding(size, partition):
    """Before and after one axis: pad // 2, the rest."""
    pad = (-size) % partition
    return pad // 2, pad - pad // 2


def pairs_of(partition):
    """A partition's pairs, coarse to fine; a pair of ints is one."""
    return [partition] if isinstance(partition[0], int) else list(partition)


def wholes(partition):
    """What the rows, and the columns, of a padded map are multiples of."""
    return [int(np.prod(axis)) for axis in zip(*pairs_of(partition), strict=True)]


def pad(image, partition):
    """(H, W, C) -> the zero-padded map and the bool map of the image's positions."""
    amounts = [padding(n, p) for n, p in zip(image.shape[:2], wholes(partition), strict=True)]
    padded = np.pad(image, [*amounts, (0, 0)])
    return padded, np.pad(np.ones(image.shape[:2], bool), amounts)


def digits(number, radices):
    """A number's digits, coarse to fine: one more than there are radices."""
    found = []
    for radix in reversed(radices):
        number, digit = divmod(number, radix)
        found.insert(0, digit)
    return [number, *found]


def groups(height, width, partition, kind):
    """All groups of a map, each a list of positions in row-major order.

    Of one group are the positions that differ in one digit of their row, and of their column, at
    most: `kind` "long" for the coarsest, "short" for the finest, or its number. Groups are ordered
    by the other digits, coarse to fine, of each that of the row first.
    """
    rows, columns = zip(*pairs_of(partition), strict=True)
    which = {"long": 0, "short": len(rows)}.get(kind, kind)
    found = {}
    for row, column in itertools.product(range(height), range(width)):
        both = zip(digits(row, rows), digits(column, columns), strict=True)
        key = tuple(pair for i, pair in enumerate(both) if i != which)
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


def biases_of(layer):
    """Of each head what the logits gain by where on the map a key lies from a query."""
    if not layer.position_bias:
        return [lambda query, key: 0.0] * layer.num_heads
    hidden, offset, outer = (np.asarray(w, np.float64) for w in layer.bias.weights)

    def gained(query, key, head):
        far = np.subtract(key, query)
        x = np.sign(far) * np.log(1 + np.abs(far))
        return np.maximum(x @ hidden + offset, 0) @ outer[:, head]

    return [functools.partial(gained, head=head) for head in range(layer.num_heads)]


def gather(query, key, value, partition, kind, heard, biases):
    """The values of every position's group, weighed; `heard` is the key mask or None.

    Each of the heads, as many as there are biases, knows of its share of the channels alone.
    """
    if len(biases) > 1:
        maps = (np.split(x, len(biases), axis=-1) for x in (query, key, value))
        heads = zip(*maps, biases, strict=True)
        gathered = [gather(*x, partition, kind, heard, [bias]) for *x, bias in heads]
        return np.concatenate(gathered, axis=-1)
    context = np.zeros_like(value)
    for group in groups(*value.shape[:2], partition, kind):
        keys = [p for p in group if heard is None or heard[p]]
        # A group without keys holds no position of the image: what it gives must not matter.
        for position in group if keys else ():
            logits = np.array([query[position] @ key[p] for p in keys])
            gained = np.array([biases[0](position, p) for p in keys])
            weights = softmax(logits / np.sqrt(query.shape[-1]) + gained)
            context[position] = sum(w * value[p] for w, p in zip(weights, keys, strict=True))
    return context


def project(x, layer):
    """Queries, keys and values of a map (H, W, C)."""
    query, key = x, x
    for step in layer.query:
        query = conv_norm_relu(query, step)
    for step in layer.key:
        key = conv_norm_relu(key, step)
    return query, key, x @ np.asarray(layer.value.kernel, np.float64)[0, 0]


def attention(x, layer, partition, kind, heard):
    """One attention over a padded map (H, W, C); `heard` is its key mask or None."""
    context = gather(*project(x, layer), partition, kind, heard, biases_of(layer))
    return read_out(context, layer)


def read_out(context, layer):
    """What an attention makes of the gathered map (H, W, C)."""
    if layer.context_norm == "batch":
        return conv_norm_relu(context, layer.output_conv)
    y = context @ np.asarray(layer.output_conv.kernel, np.float64)[0, 0]
    if layer.context_norm is None:
        return np.maximum(y + np.asarray(layer.output_conv.bias, np.float64), 0)
    gamma, beta = (np.asarray(w, np.float64) for w in layer.output_norm.weights)
    y = (y - y.mean((0, 1))) / np.sqrt(y.var((0, 1)) + EPSILON)
    return np.maximum(gamma * y + beta, 0)


def factorized(x, layer, partition, kinds, mask):
    """Attentions in a row of one projection of a map (H, W, C), which is padded behind it."""
    query, key, value = (pad(y, partition)[0] for y in project(x, layer))
    heard = image = pad(x, partition)[1]
    for kind in kinds:
        keys, seen = key, heard if mask else None
        value = gather(query, keys, value, partition, kind, seen, biases_of(layer))
        if layer.carries:
            key = gather(query, keys, key, partition, kind, seen, biases_of(layer))
        heard = spread(heard, partition, kind)
    return read_out(value[image].reshape(*x.shape[:2], -1), layer)


def kinds_of(order, levels):
    """The levels that an order runs through, as `groups` takes them."""
    along = ["long", *range(1, levels - 1), "short"]
    return {"long_short": along, "short_long": along[::-1]}.get(order, [order])


def interlaced(x, layer, mask=True, partitions=None):
    """The whole module on one map (H, W, C), with an InterlacedSparseAttention's weights."""
    partitions = partitions or layer.partitions
    attentions = iter(layer.attentions)
    x = np.asarray(x, np.float64)
    maps = []
    for partition in partitions:
        kinds = kinds_of(layer.order, len(pairs_of(partition)) + 1)
        if layer.share_projections:
            y = x
            for _ in range(layer.depth):
                y = factorized(y, next(attentions), partition, kinds, mask)
            maps.append(y)
            continue
        y, heard = pad(x, partition)
        image = heard.copy()
        for kind in kinds * layer.depth:
            y = attention(y, next(attentions), partition, kind, heard if mask else None)
            heard = spread(heard, partition, kind)
        maps.append(y[image].reshape(*x.shape[:2], -1))
    if not layer.fuse:
        return np.concatenate(maps, axis=-1)
    maps.append(conv_norm_relu(x, layer.widen) if len(partitions) > 1 else x)
    return conv_norm_relu(np.concatenate(maps, axis=-1), layer.fusion)
