"""Bilinear resizing against loops over output positions."""

import numpy as np
import pytest

from isa_tf import ops


def source(i, before, after, coordinates):
    if coordinates == "align_corners":
        return i * (before - 1) / (after - 1) if after > 1 else 0.0
    scale = before / after
    return (i + 0.5) * scale - 0.5 if coordinates == "half_pixel" else i * scale


def by_loops(x, size, coordinates):
    out = np.zeros((x.shape[0], *size, x.shape[3]))
    for i, j in np.ndindex(*size):
        total = 0.0
        places = [
            max(source(n, x.shape[axis], size[axis - 1], coordinates), 0.0)
            for axis, n in ((1, i), (2, j))
        ]
        for di, dj in np.ndindex(2, 2):
            y, weight_y = int(places[0]) + di, abs(1 - di - places[0] % 1)
            z, weight_z = int(places[1]) + dj, abs(1 - dj - places[1] % 1)
            value = x[:, min(y, x.shape[1] - 1), min(z, x.shape[2] - 1)]
            total = total + weight_y * weight_z * value
        out[:, i, j] = total
    return out


@pytest.mark.parametrize("coordinates", ops.COORDINATES)
@pytest.mark.parametrize("size", [(5, 7), (13, 9), (1, 3), (4, 4)])
def test_equals_loops(coordinates, size):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    found = ops.resize_bilinear(x, size, coordinates)
    np.testing.assert_allclose(found, by_loops(x, size, coordinates), atol=1e-5)


def test_unknown_coordinates():
    with pytest.raises(ValueError, match="half_pixel, align_corners, asymmetric, got 'corners'"):
        ops.resize_bilinear(np.zeros((1, 2, 2, 1), "float32"), (3, 3), "corners")
