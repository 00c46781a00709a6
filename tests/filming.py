"""Videos made and read by PyAV alone, which tests compare with."""

from fractions import Fraction

import numpy as np

RATE = Fraction(30000, 1001)


def pictures(count=12, size=(48, 64), seed=0):
    """Frames (count, H, W, 3) of coarse squares, each different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, -(-size[0] // 8), -(-size[1] // 8), 3), np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]]


def film(path, frames, **options):
    """Writes frames as H.264, of `RATE`; options are the container's."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def decoded(path):
    """What is in a file: its frames, and (rate, codec, times in seconds)."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = list(container.decode(stream))
        told = stream.average_rate, stream.codec_context.name, [frame.time for frame in found]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in found]), told


def cut(path, share=0.6):
    """Leaves the first bytes of a file."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path
