"""The augmentation of `isa_tf.data.train_pipeline` again, of what was drawn: by NumPy or by JAX."""

FIELDS = ("place", "flip", "matrix", "offset")  # of a plan, a row an example; colours may be none


def replay(xp, image, label, row, crop_size, padding):
    """One example as the pipeline gives it.

    Args:
        xp: `numpy` or `jax.numpy`.
        image, label: uint8 arrays (H, W, 3) and (H, W).
        row: dict of "place", (2, 2) ints of `isa_tf.data.augment.crop_place`, and "flip"; and,
            where colours are changed, "matrix" and "offset" of `augment.color_change`.
        crop_size: (height, width).
        padding: (colour, label) around the image.

    Shapes:
        (H, W, 3), (H, W) -> (h, w, 3), (h, w) for crop_size (h, w); uint8.
    """
    start, window = row["place"]
    places = [
        _along(xp, start[axis], window[axis], label.shape[axis], crop_size[axis], mirrored)
        for axis, mirrored in enumerate((False, row["flip"]))
    ]
    (y_inside, y_low, y_high, y_part, y_near), (x_inside, x_low, x_high, x_part, x_near) = places

    def pixels(y, x):
        return image[y[:, None], x[None, :]].astype(xp.float32)

    # In the order in which `tf.image.resize` interpolates.
    x_part, y_part = x_part[None, :, None], y_part[:, None, None]
    top, bottom = pixels(y_low, x_low), pixels(y_high, x_low)
    top = top + (pixels(y_low, x_high) - top) * x_part
    bottom = bottom + (pixels(y_high, x_high) - bottom) * x_part
    cut = (top + (bottom - top) * y_part + xp.float32(0.5)).astype(xp.uint8)
    near = label[y_near[:, None], x_near[None, :]]

    color, ignored = padding
    inside = y_inside[:, None] & x_inside[None, :]
    cut = xp.where(inside[..., None], cut, xp.asarray(color, xp.uint8))
    near = xp.where(inside, near, xp.uint8(ignored))
    if "matrix" in row:
        cut = _recolored(xp, cut, row["matrix"], row["offset"])
    return cut, near


def _along(xp, start, window, source, crop, mirrored):
    """Along one axis, of every pixel of the crop: where it lies, as `augment.fit_crop` has it.

    Returns:
        whether it is of the image; the pixels of the image before and behind it, and how far it
        is from the one to the other; the pixel that its label is of.
    """
    first = xp.maximum(start, 0)
    last = xp.minimum(start + window, source)
    found = last - first
    ratio = xp.float32(crop) / window.astype(xp.float32)
    before, until = (
        xp.round((at - start).astype(xp.float32) * ratio).astype(xp.int32) for at in (first, last)
    )
    size = xp.maximum(until - before, 1)
    before = xp.minimum(before, crop - size)

    at = xp.arange(crop, dtype=xp.int32)
    at = xp.where(mirrored, crop - 1 - at, at) - before
    inside = (at >= 0) & (at < size)
    scale = found.astype(xp.float32) / size.astype(xp.float32)
    point = (at.astype(xp.float32) + xp.float32(0.5)) * scale - xp.float32(0.5)
    floor = xp.floor(point)
    low = floor.astype(xp.int32)
    near = (2 * at + 1) * found // (2 * size)
    low, high, near = (first + xp.clip(each, 0, found - 1) for each in (low, low + 1, near))
    return inside, low, high, point - floor, near


def _recolored(xp, image, matrix, offset):
    # Without a matrix product, which accelerators round to fewer digits.
    colors = image.astype(xp.float32)
    channels = [
        colors[..., 0] * row[0] + colors[..., 1] * row[1] + colors[..., 2] * row[2] + offset
        for row in matrix
    ]
    return xp.clip(xp.stack(channels, -1), 0.0, 255.0).astype(xp.uint8)
