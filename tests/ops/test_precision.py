"""Which precision products are computed in."""

import pytest

from isa_tf import ops
from isa_tf.ops import precision


@pytest.mark.parametrize(
    ("dtype", "half_seconds", "expected"),
    [
        ("bfloat16", 0.5, "bfloat16"),
        ("bfloat16", 2.0, "float32"),
        ("float16", 0.5, "float16"),
        ("float16", 2.0, "float32"),
        ("float32", 0.5, "float32"),
        ("float64", 0.5, "float32"),
    ],
)
def test_the_quicker_precision(monkeypatch, dtype, half_seconds, expected):
    seconds = {dtype: half_seconds, "float32": 1.0}
    monkeypatch.setattr(precision, "_seconds", lambda x: seconds[x.dtype.name])
    assert ops.product_dtype.__wrapped__(dtype) == expected


def test_it_is_timed_once(monkeypatch):
    first = ops.product_dtype("bfloat16")
    monkeypatch.setattr(precision, "_seconds", lambda x: pytest.fail("timed again"))
    assert ops.product_dtype("bfloat16") == first in ("bfloat16", "float32")
