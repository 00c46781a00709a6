from pathlib import Path

import numpy as np
import pytest

from isa_tf import data
from isa_tf.data import catalogue

CAMVID = Path(__file__).parents[2].parent / "shared/data/camvid"


def test_names():
    assert {"camvid", "ccp", "folder", "synthetic"} <= set(data.list_names())


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match='did you mean "camvid"'):
        data.create("camvidd", "x")


def test_data_dir_where_it_belongs():
    with pytest.raises(ValueError, match="needs data_dir"):
        data.create("camvid")
    with pytest.raises(ValueError, match="takes no data_dir"):
        data.create("synthetic", "x")
    assert data.create("synthetic", num_examples={"train": 3}).size("train") == 3


@pytest.fixture
def own_names(monkeypatch):
    """Names registered in a test are gone after it."""
    monkeypatch.setattr(catalogue._DATASETS, "_entries", dict(catalogue._DATASETS.items()))


def test_datasets_join_from_outside(own_names):
    made = []

    @data.register("mine")
    def mine(data_dir, **kwargs):
        made.append((data_dir, kwargs))
        return data.SyntheticDataset(**kwargs)

    data.register("made up", data.SyntheticDataset)
    assert {"mine", "made up", "camvid"} <= set(data.list_names())
    assert data.create("mine", "there", seed=3).seed == 3
    assert made == [("there", {"seed": 3})]
    assert data.create("made up", seed=4).seed == 4
    with pytest.raises(ValueError, match="'mine' needs data_dir"):
        data.create("mine")
    with pytest.raises(ValueError, match="'made up' takes no data_dir"):
        data.create("made up", "there")
    with pytest.raises(ValueError, match='did you mean "mine"'):
        data.create("mime", "there")


def test_a_name_is_not_taken_from_another(own_names):
    with pytest.raises(ValueError, match="there is a dataset 'camvid' already"):
        data.register("camvid", data.SyntheticDataset)
    with pytest.raises(ValueError, match="'camvid' needs data_dir"):
        data.create("camvid")


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"no CamVid at {CAMVID}")
def test_camvid():
    camvid = data.create("camvid", CAMVID)
    assert (camvid.size("train"), camvid.size("val"), camvid.num_classes) == (367, 101, 11)
    assert camvid.class_names[3] == "Road" and camvid.palette[3] == (128, 64, 128)
    image, label = camvid.read("train", 0)
    assert image.shape == (360, 480, 3) and label.shape == (360, 480)
    assert set(np.unique(label)) <= {*range(11), 255}
    batch = next(iter(data.train_pipeline(camvid, "train", 2, (180, 240))))
    assert batch[0].shape == (2, 180, 240, 3)


def test_palette_and_names_are_checked():
    class Tiny(data.SegmentationDataset):
        pass

    with pytest.raises(ValueError, match="2 colours for 1"):
        Tiny("tiny", ["a"], ("train",), palette=[(0, 0, 0), (1, 1, 1)])
    with pytest.raises(ValueError, match="256 class names"):
        Tiny("tiny", map(str, range(256)), ("train",))
