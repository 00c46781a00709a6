import json
import shutil
import zipfile
from types import MappingProxyType

import exporting
import pytest
from pages import Reader

import isa_tf
from isa_tf import web


def told(folder):
    return json.loads((folder / "models" / "models.json").read_text(encoding="utf-8"))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_written(exported, page, tmp_path):
    photo = tmp_path / "a photo.jpg"
    photo.write_bytes(b"as it is")
    models = MappingProxyType({"Öl & more": exported, "second": str(exported)})
    folder = web.write(tmp_path / "site", models, [photo], "Streets <b>", clear=(2, 0), page=page)
    assert folder == tmp_path / "site"
    assert sorted(contents(folder)) == [
        "examples/a photo.jpg",
        "index.html",
        "models/0-_l_more.tflite",
        "models/1-second.tflite",
        "models/models.json",
        "page.css",
        "wasm/runtime.wasm",
    ]
    assert (folder / "examples/a photo.jpg").read_bytes() == b"as it is"
    index = told(folder)
    assert index["examples"] == ["a photo.jpg"]
    assert [row["name"] for row in index["models"]] == ["Öl & more", "second"]
    for row in index["models"]:
        assert (folder / "models" / row["file"]).read_bytes() == exported.read_bytes()
        assert row["bytes"] == exported.stat().st_size
        assert row["image_sizes"] == [[48, 64]]
        assert [c["name"] for c in row["classes"]] == [*exporting.NAMES]
        assert [tuple(c["color"]) for c in row["classes"]] == [*exporting.PALETTE]
        assert row["clear"] == [0, 2]
    # No host or link of another's, and the policy that forbids them.
    html = (folder / "index.html").read_text(encoding="utf-8")
    reader = Reader(html)
    assert reader.texts("h1") == reader.texts("title") == ["Streets <b>"]
    assert "http:" not in html and "https:" not in html
    (policy,) = (m["content"] for m, _ in reader.all("meta") if "http-equiv" in m)
    assert policy == web.POLICY and "default-src 'none'" in policy
    assert isa_tf.__version__ in reader.texts("footer")[0]


def test_paths_alone_are_called_by_their_stems(exported, page, tmp_path):
    other = shutil.copy(exported, tmp_path / "other.tflite")
    folder = web.write(tmp_path / "site", [exported, other], page=page)
    assert [row["name"] for row in told(folder)["models"]] == ["model", "other"]
    assert not (folder / "examples").exists()
    (tmp_path / "x").mkdir()
    again = shutil.copy(exported, tmp_path / "x" / "Model.tflite")
    with pytest.raises(ValueError, match="two models of the name 'Model'"):
        web.write(tmp_path / "site", [exported, again], page=page)


def test_a_model_without_names_and_colours(page, tmp_path):
    model = exporting.make_model(names=None)
    path = isa_tf.export(model, tmp_path / "plain.tflite", image_size=(16, 24))
    (row,) = told(web.write(tmp_path / "site", [path], page=page))["models"]
    assert [c["name"] for c in row["classes"]] == [f"class {i}" for i in range(7)]
    colors = [tuple(c["color"]) for c in row["classes"]]
    assert colors == [tuple(map(int, c)) for c in isa_tf.data.base.voc_palette(7)]


def test_it_is_written_anew(exported, page, tmp_path):
    folder = web.write(tmp_path / "site", {"first": exported, "gone": exported}, page=page)
    web.write(folder, {"first": exported}, page=page)
    assert sorted(p.name for p in (folder / "models").iterdir()) == [
        "0-first.tflite",
        "models.json",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


@pytest.fixture
def bad(exported, tmp_path):
    """Files that the page cannot show, by the reason."""
    flat = exported.read_bytes()
    flat = flat[: zipfile.ZipFile(exported).infolist()[0].header_offset]
    contents = {
        "not a LiteRT model": b"no model at all",
        "has no isa_tf.json": flat,
        "damaged isa_tf.json": flat,
    }
    paths = {}
    for i, (reason, data) in enumerate(contents.items()):
        paths[reason] = tmp_path / f"{i}.tflite"
        paths[reason].write_bytes(data)
    with zipfile.ZipFile(paths["damaged isa_tf.json"], "a") as archive:
        archive.writestr("isa_tf.json", "{")
    paths["segmentation models alone"] = tmp_path / "instances.tflite"
    paths["segmentation models alone"].write_bytes(flat)
    detector = isa_tf.inference.InstanceContract(num_classes=2)
    with zipfile.ZipFile(paths["segmentation models alone"], "a") as archive:
        archive.writestr("isa_tf.json", detector.to_text())
    return paths


@pytest.mark.parametrize(
    "reason",
    [
        "not a LiteRT model",
        "has no isa_tf.json",
        "damaged isa_tf.json",
        "segmentation models alone",
    ],
)
def test_what_cannot_be_shown_is_refused(bad, reason, exported, page, tmp_path):
    folder = web.write(tmp_path / "site", [exported], page=page)
    before = contents(folder)
    with pytest.raises(ValueError, match=reason) as error:
        web.write(folder, {"good": exported, "bad": bad[reason]}, page=page)
    assert str(bad[reason]) in str(error.value)
    assert contents(folder) == before


def test_what_is_not_there(exported, page, tmp_path):
    for models, examples in (([tmp_path / "no.tflite"], ()), ([exported], [tmp_path / "no.jpg"])):
        with pytest.raises(FileNotFoundError, match="no such file"):
            web.write(tmp_path / "site", models, examples, page=page)
    with pytest.raises(ValueError, match="no model"):
        web.write(tmp_path / "site", {}, page=page)
    with pytest.raises(RuntimeError, match="make web"):
        web.write(tmp_path / "site", [exported], page=tmp_path / "unbuilt")
    assert not (tmp_path / "site").exists()
    assert not web.is_built(tmp_path) and web.is_built(page)


def test_other_arguments(exported, page, tmp_path):
    for i in (7, -1):
        with pytest.raises(ValueError, match=f"unknown class to clear in .*: '{i}'; known: "):
            web.write(tmp_path / "site", [exported], clear=[i], page=page)
    photos = [tmp_path / "a" / "x.png", tmp_path / "b" / "X.png"]
    for photo in photos:
        photo.parent.mkdir()
        photo.write_bytes(b"")
    with pytest.raises(ValueError, match="two examples of the name 'X.png'"):
        web.write(tmp_path / "site", [exported], photos, page=page)
    with pytest.raises(ValueError, match="browsers show"):
        web.write(tmp_path / "site", [exported], [exported], page=page)


def test_what_it_did_not_write_stays(exported, page, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all there is")
    for folder in (mine, mine / "thesis.txt"):
        with pytest.raises(ValueError, match="holds something else"):
            web.write(folder, [exported], page=page)
    assert contents(mine) == {"thesis.txt": b"all there is"}
    (mine / "thesis.txt").unlink()
    web.write(mine, [exported], page=page)  # an empty one is taken
    assert told(mine)["models"]
