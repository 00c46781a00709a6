"""Pictures that tests read back from a page."""

import base64
import io

from PIL import Image


def decode(uri):
    """The picture of a data URI, which is WebP."""
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))
