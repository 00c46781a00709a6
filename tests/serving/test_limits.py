import pickle

import asking
import numpy as np
import pytest
from PIL import Image

from isa_tf.serving import Limits, Refused, read_picture


# Pillow warns of a bomb that is below its own limit; it is ours that is tested.
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning:PIL")
@pytest.mark.parametrize("kind", asking.garbage())
def test_what_is_refused(kind):
    contents, status, reason = asking.garbage()[kind]
    with pytest.raises(Refused, match=reason) as caught:
        read_picture(contents)
    assert caught.value.status == status


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    def load(*_):
        raise AssertionError("it was decoded")

    contents = asking.saved(np.zeros((40, 50), np.uint8))
    for name in ("load", "convert"):
        monkeypatch.setattr(f"PIL.PngImagePlugin.PngImageFile.{name}", load)
    with pytest.raises(Refused, match="50x40 are more than the 1999 pixels"):
        read_picture(contents, Limits(max_pixels=1999))
    with pytest.raises(Refused, match="it was decoded"):
        read_picture(contents, Limits(max_pixels=2000))


def test_what_is_converted():
    picture = asking.some_picture()
    np.testing.assert_array_equal(read_picture(asking.saved(picture)), picture)
    np.testing.assert_array_equal(read_picture(asking.saved(picture, "BMP")), picture)
    lossless = asking.saved(picture, "WEBP", lossless=True)
    np.testing.assert_array_equal(read_picture(lossless), picture)
    grey = asking.saved(picture[..., 0])
    np.testing.assert_array_equal(read_picture(grey), picture[..., :1].repeat(3, 2))
    cmyk = asking.saved(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(read_picture(cmyk).astype(int) - picture).mean() < 40
    preview = Image.fromarray(picture[::2, ::2])
    of_phone = asking.saved(picture, "MPO", save_all=True, append_images=[preview])
    jpeg = asking.saved(picture, "JPEG")
    np.testing.assert_array_equal(read_picture(of_phone), read_picture(jpeg))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = asking.saved(picture, exif=exif)
    np.testing.assert_array_equal(read_picture(turned), picture[::-1, ::-1])


def test_limits_are_above_0():
    for name in ("max_bytes", "max_pixels", "body_seconds", "answer_seconds"):
        with pytest.raises(ValueError, match=f"{name} must be above 0, got 0"):
            Limits(**{name: 0})


def test_a_refusal_travels():
    again = pickle.loads(pickle.dumps(Refused(413, "too much")))
    assert (again.status, again.reason) == (413, "too much")
