"""Predictions as files for a benchmark's server."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from isa_tf.data import SegmentationDataset
from isa_tf.data.base import voc_palette
from isa_tf.inference import Encoding, Predictor, Protocol, write_results

NAMES = ("a/first_leftImg8bit.png", "b/second_leftImg8bit.png", "third.v2.jpg")


class Photos(SegmentationDataset):
    """Images of 3 classes whose red channel is the class; a test split without labels."""

    def __init__(self, names=NAMES, **told):
        super().__init__("photos", ("sky", "tree", "road"), ("test",))
        self.names, self.seen = names, []
        for name, value in told.items():
            setattr(self, name, value)

    def examples(self, split):
        self._check_split(split)
        return self.names

    def read(self, split, index):
        self.seen.append(index)
        image = np.zeros((4 + index, 6, 3), np.uint8)
        image[:, :3, 0] = index
        image[:, 3:, 0] = 2
        return image, None


def predictor(**options):
    return Predictor(lambda images: (images[..., 0], images[..., 1] / 255), 3, **options)


def truth(index, ids=(0, 1, 2)):
    row = [ids[index]] * 3 + [ids[2]] * 3
    return np.array([row] * (4 + index))


@pytest.mark.parametrize(
    ("told", "ids", "names"),
    [
        ({}, (0, 1, 2), ["first_leftImg8bit.png", "second_leftImg8bit.png", "third.v2.png"]),
        (
            {"submission_ids": (7, 11, 33), "submission_suffix": "_pred"},
            (7, 11, 33),
            ["first_leftImg8bit_pred.png", "second_leftImg8bit_pred.png", "third.v2_pred.png"],
        ),
        (
            {"submission_ids": np.arange(1, 4), "submission_palette": voc_palette(256)},
            (1, 2, 3),
            ["first_leftImg8bit.png", "second_leftImg8bit.png", "third.v2.png"],
        ),
    ],
    ids=["as they are", "cityscapes", "palette"],
)
def test_files_are_what_the_dataset_declares(tmp_path, told, ids, names):
    paths = write_results(predictor(), Photos(**told), "test", tmp_path / "new" / "results")
    assert [path.name for path in paths] == names
    assert sorted(os.listdir(tmp_path / "new" / "results")) == names
    assert sorted(os.listdir(tmp_path / "new")) == ["results", "results.results.json"]
    for index, path in enumerate(paths):
        with Image.open(path) as picture:
            assert picture.mode == ("P" if "submission_palette" in told else "L")
            np.testing.assert_array_equal(np.asarray(picture), truth(index, ids))
            if picture.mode == "P":
                palette = voc_palette(256)
                colors = [[palette[i] for i in row] for row in truth(index, ids)]
                np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colors)


def test_a_run_that_was_stopped_is_gone_on_with(tmp_path):
    data, calls, folder = Photos(), [], tmp_path / "results"

    def stopping(images):
        calls.append(images.shape)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return images[..., 0], images[..., 1] / 255

    with pytest.raises(KeyboardInterrupt):
        write_results(Predictor(stopping, 3), data, "test", folder)
    assert os.listdir(folder) == ["first_leftImg8bit.png"]
    (folder / ".new-1-second_leftImg8bit.png").write_bytes(b"of a process that was killed")
    first = (folder / "first_leftImg8bit.png").stat().st_mtime_ns
    data.seen.clear()
    paths = write_results(predictor(), data, "test", folder)
    assert data.seen == [1, 2] and paths[0].stat().st_mtime_ns == first
    assert sorted(os.listdir(folder)) == sorted(path.name for path in paths)
    data.seen.clear()
    assert write_results(predictor(), data, "test", folder) == paths and data.seen == []


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("options", "facts", "message"),
    [
        ({"protocol": Protocol(flip=True)}, {"model": "a"}, "of another protocol;"),
        ({}, {"model": "b"}, "of another model;"),
    ],
)
def test_other_results_are_left_alone(tmp_path, options, facts, message):
    folder = tmp_path / "results"
    write_results(predictor(), Photos(), "test", folder, facts={"model": "a"})
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"holds 3 files, {message}"):
        write_results(predictor(**options), Photos(), "test", folder, facts=facts)
    encoding = Encoding(ids=(1, 2, 3))
    with pytest.raises(FileExistsError, match="of another encoding;"):
        write_results(predictor(), Photos(), "test", folder, encoding, {"model": "a"})
    assert contents(tmp_path) == before


def test_folders_that_hold_something_else(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "holiday.png").write_bytes(b"dear to somebody")
    with pytest.raises(FileExistsError, match=r"1 files, and no results\.results\.json beside it"):
        write_results(predictor(), Photos(), "test", folder)
    assert [str(path) for path in contents(tmp_path)] == ["results/holiday.png"]
    (folder / "holiday.png").unlink()
    write_results(predictor(), Photos(), "test", folder)
    (folder / "holiday.png").write_bytes(b"dear to somebody")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds holiday\.png, which is no result"):
        write_results(predictor(), Photos(), "test", folder)
    assert contents(tmp_path) == before
    (tmp_path / "results.results.json").write_text("torn {")
    with pytest.raises(FileExistsError, match="4 files, and no"):
        write_results(predictor(), Photos(), "test", folder)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    folder = tmp_path / "results"
    for dataset, message in (
        (Photos(names=("a/1.png", "b/1.jpg", "c.png")), "a/1.png and b/1.jpg would both .* 1.png"),
        (Photos(submission_ids=(1, 2)), "2 ids for the 3 classes of photos"),
        (Photos(submission_ids=(1, 2, 256)), "ids are 0 to 255"),
        (Photos(submission_ids=(1, 2, 2)), "each once"),
    ):
        with pytest.raises(ValueError, match=message):
            write_results(predictor(), dataset, "test", folder)
    with pytest.raises(ValueError, match="the predictor has 7 classes, photos has 3"):
        other = Predictor(lambda images: (images[..., 0], images[..., 1]), 7)
        write_results(other, Photos(), "test", folder)
    with pytest.raises(ValueError, match="no split 'tset'"):
        write_results(predictor(), Photos(), "tset", folder)
    assert os.listdir(tmp_path) == []

    def wrong(images):
        return images[..., 0] + 7, images[..., 1] / 255

    with pytest.raises(ValueError, match="class 9 has no id: the ids are of 0 to 2"):
        write_results(Predictor(wrong, 3), Photos(submission_ids=(1, 2, 3)), "test", folder)
    assert os.listdir(folder) == []
    told = json.loads((tmp_path / "results.results.json").read_text())
    assert told["dataset"] == "photos" and told["encoding"]["ids"] == [1, 2, 3]
