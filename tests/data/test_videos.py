import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import filming
import numpy as np
import pytest

from isa_tf import files
from isa_tf.data import DataError
from isa_tf.data.videos import Camera, Frame, Video, VideoWriter, some_frames

pytest.importorskip("av", reason="the extra video is not installed")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi"])
def test_frames_of_a_file(tmp_path, name):
    path = filming.film(tmp_path / name, filming.pictures())
    frames, (rate, _, times) = filming.decoded(path)
    video = Video(path)
    found = list(video)
    assert video.rate == rate == filming.RATE and not video.live
    assert [frame.index for frame in found] == list(range(12))
    np.testing.assert_array_equal([frame.image for frame in found], frames)
    np.testing.assert_allclose([float(f.time * video.time_base) for f in found], times, atol=1e-9)
    assert len(list(video)) == 12  # once more, from the beginning


def test_a_phone_that_was_held_upright(tmp_path):
    path = filming.film(tmp_path / "film.mp4", filming.pictures())
    frames, _ = filming.decoded(path)
    # The matrix of the track: shown turned by a quarter, clockwise.
    one, minus = b"\0\1\0\0", b"\xff\xff\0\0"
    before = one + bytes(12) + one + bytes(12) + b"\x40\0\0\0"
    after = bytes(4) + one + bytes(4) + minus + bytes(16) + b"\x40\0\0\0"
    contents = path.read_bytes()
    at = contents.index(before, contents.index(b"tkhd"))
    path.write_bytes(contents[:at] + after + contents[at + len(before) :])
    found = list(Video(path))
    assert found[0].image.shape == (64, 48, 3)
    clockwise = frames[3].transpose(1, 0, 2)[:, ::-1]
    np.testing.assert_array_equal(found[3].image, clockwise)


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("film.mp4", {"movflags": "faststart"}, 0.7),
        ("film.mkv", {}, 0.6),
        ("film.avi", {}, 0.6),
    ],
)
def test_a_file_that_is_cut(tmp_path, name, options, share):
    path = filming.film(tmp_path / name, filming.pictures(30), **options)
    frames, _ = filming.decoded(path)
    filming.cut(path, share)
    found = []
    with pytest.raises(DataError, match="film.*: ended after") as caught:
        for frame in Video(path):
            found.append(frame.image)
    assert 0 < len(found) < 30
    assert f"ended after {len(found)} frames of about 30: " in str(caught.value)
    np.testing.assert_array_equal(found, frames[: len(found)])


def test_what_is_no_video(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"film.mp4: cannot be read as a video .Invalid data"):
        Video(tmp_path / "film.mp4")
    with pytest.raises(DataError, match="none.mp4: no such file"):
        Video(tmp_path / "none.mp4")
    # Without its index, which lies at the end, there is no frame to be had of it.
    path = filming.cut(filming.film(tmp_path / "cut.mp4", filming.pictures()))
    with pytest.raises(DataError, match="cut.mp4: cannot be read as a video"):
        Video(path)


def test_some_frames():
    asked = []

    def source():
        for i in range(100):
            asked.append(i)
            yield Frame(i, None, i)

    assert [f.index for f in some_frames(source(), every=3, limit=3)] == [0, 3, 6]
    assert asked[-1] == 6  # no more was decoded
    assert len(list(some_frames(source()))) == 100
    for every, limit in ((0, None), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            some_frames(source(), every, limit)


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
@pytest.mark.parametrize("rate", [25, Fraction(24000, 1001)])
def test_what_is_written(tmp_path, size, rate):
    frames = filming.pictures(8, size)
    with VideoWriter(tmp_path / "film.mp4", size, rate) as writer:
        for i, frame in enumerate(frames):
            writer.write(frame, i)
    found, (told, codec, times) = filming.decoded(tmp_path / "film.mp4")
    assert found.shape == frames.shape and told == rate and codec == "h264"
    np.testing.assert_allclose(times, np.arange(8) / float(rate), atol=1e-4)
    difference = np.abs(found.astype(int) - frames).mean((1, 2, 3))
    other = np.abs(found[:-1].astype(int) - frames[1:]).mean()
    assert difference.max() < 8 < 40 < other  # lossy, but each is itself
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_times_that_vary_and_that_stand_still(tmp_path):
    with VideoWriter(tmp_path / "film.mp4", (48, 64), 25, Fraction(1, 1000)) as writer:
        for frame, time in zip(filming.pictures(4), (0, 40, 40, 900), strict=True):
            writer.write(frame, time)
    _, (_, _, times) = filming.decoded(tmp_path / "film.mp4")
    np.testing.assert_allclose(times, [0, 0.04, 0.041, 0.9], atol=1e-4)


def test_nothing_takes_the_place_of_an_older_file_but_a_whole_one(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"older")
    frames = filming.pictures(4)
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, (48, 64), 25) as writer:
        writer.write(frames[0], 0)
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match=r"uint8 \(48, 64, 3\), got uint8 \(47, 64, 3\)"):
        with VideoWriter(path, (48, 64), 25) as writer:
            writer.write(frames[0][1:], 0)
    assert path.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1


def test_a_writer_that_is_killed(tmp_path):
    script = (
        "import os, signal, sys\n"
        "import filming\n"
        "from isa_tf.data.videos import VideoWriter\n"
        "with VideoWriter(sys.argv[1], (48, 64), 25) as writer:\n"
        "    for i, frame in enumerate(filming.pictures(60)):\n"
        "        writer.write(frame, i)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "film.mp4"
    path.write_bytes(b"older")
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={**os.environ, "PYTHONPATH": search, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert path.read_bytes() == b"older"
    assert len(list(tmp_path.glob(".new-*film.mp4"))) == 1
    files.sweep(tmp_path)
    assert [left.name for left in tmp_path.iterdir()] == ["film.mp4"]


def test_a_camera(tmp_path):
    """There is none here: OpenCV reads a film in its place."""
    cv2 = pytest.importorskip("cv2", reason="the extra video is not installed")
    path = filming.film(tmp_path / "film.mp4", filming.pictures(6))
    frames, _ = filming.decoded(path)
    camera = Camera(capture=cv2.VideoCapture(str(path)))
    found = list(camera)
    assert camera.live and abs(float(camera.rate) - 29.97) < 0.01
    assert [frame.index for frame in found] == list(range(6))
    times = [frame.time for frame in found]
    assert all(a < b for a, b in zip(times, times[1:], strict=False))
    # Its colours are in our order; its arithmetic is a little different.
    for frame, expected in zip(found, frames, strict=True):
        assert np.abs(frame.image.astype(int) - expected).mean() < 3
    with pytest.raises(DataError, match="camera99: there is no such camera"):
        Camera(99)
