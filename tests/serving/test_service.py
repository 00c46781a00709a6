import io
import json

import asking
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from isa_tf import load_predictor
from isa_tf.inference import InstanceContract, InstancePredictor, Predictor
from isa_tf.models import Segmenter
from isa_tf.serving import Options, Refused, Service

NAMES, PALETTE = ("sky", "sea", "land", "sand"), ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))

BAD = (1, 2, 3)


def classes(images):
    """Class ids by the first channel; images whose first pixel is BAD cannot be done."""
    if (images[:, 0, 0] == BAD).all(-1).any():
        raise RuntimeError("bad")
    ids = (images[..., 0] // 64).astype(np.uint8)
    return ids, np.ones(ids.shape, np.float32)


def instances(images):
    count, height, width = images.shape[:3]
    masks = np.zeros((count, 3, height, width), bool)
    masks[:, 0, :4, :5] = masks[:, 1, 2:, 1:] = True
    boxes = np.float32([[0, 0, 5, 4], [1, 2, width, height], [0, 0, 1, 1]])
    return {
        "boxes": np.stack([boxes] * count),
        "classes": np.int32([[1, 0, 0]] * count),
        "scores": np.float32([[0.75, 0.25, 0]] * count),
        "valid": np.array([[True, True, False]] * count),
        "masks": masks,
    }


@pytest.fixture
def service():
    return Service(Predictor(classes, 4, NAMES, PALETTE))


@pytest.fixture
def finder():
    contract = InstanceContract(2, ("cat", "dog"), category_ids=(17, 18))
    return Service(InstancePredictor(instances, contract))


def picture_of(answer):
    assert answer.media_type == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.body)))


def test_a_first_call_is_made_at_once():
    sizes = []

    def run(images):
        sizes.append(images.shape)
        return classes(images + np.uint8(1))

    Service(Predictor(run, 4, image_size=(8, 12)))
    assert sizes == [(1, 8, 12, 3)]


def test_classes_are_answered(service):
    picture = asking.some_picture()
    contents, ids = asking.saved(picture), picture[..., 0] // 64
    np.testing.assert_array_equal(picture_of(service.answer(contents, Options("ids"))), ids)
    answer = service.answer(contents, Options())
    assert answer.media_type == "application/json"
    told = json.loads(answer.body)
    assert told["size"] == [20, 30]
    for row in told["classes"]:
        of_class = ids == row["class_id"]
        np.testing.assert_array_equal(mask.decode(row["segmentation"]), of_class)
        assert row["name"] == NAMES[row["class_id"]] and row["share"] == of_class.mean()
    without = json.loads(service.answer(contents, Options(masks=False)).body)
    assert without["classes"][0].keys() == {"class_id", "name", "pixels", "share"}
    drawn = picture_of(service.answer(contents, Options("overlay", opacity=1, legend=False)))
    np.testing.assert_array_equal(drawn, np.uint8(PALETTE)[ids])
    assert picture_of(service.answer(contents, Options("overlay"))).shape[0] > 20


def test_more_classes_than_a_byte_holds():
    def run(images):
        ids = images[..., 0].astype(np.int32) * 3
        return ids, np.ones(ids.shape, np.float32)

    service, picture = Service(Predictor(run, 800)), asking.some_picture()
    ids = picture_of(service.answer(asking.saved(picture), Options("ids")))
    np.testing.assert_array_equal(ids, picture[..., 0].astype(int) * 3)


def test_instances_are_answered(finder):
    picture = asking.some_picture()
    contents = asking.saved(picture)
    told = json.loads(finder.answer(contents, Options()).body)
    assert [row["name"] for row in told["instances"]] == ["dog", "cat"]
    assert [row["category_id"] for row in told["instances"]] == [18, 17]
    masks = [mask.decode(row["segmentation"]) for row in told["instances"]]
    np.testing.assert_array_equal(masks, instances(picture[None])["masks"][0, :2])
    assert told["instances"][1]["box"] == [1, 2, 30, 20]
    told = json.loads(finder.answer(contents, Options(score=0.5)).body)
    assert [row["score"] for row in told["instances"]] == [0.75]
    assert picture_of(finder.answer(contents, Options("overlay"))).shape[2] == 3
    with pytest.raises(Refused, match="400: a model of instance_segmentation gives no class ids"):
        finder.answer(contents, Options("ids"))


def test_images_of_one_size_go_together(service):
    sizes = []

    def run(images):
        sizes.append(images.shape[:3])
        return classes(images)

    service.predictor = Predictor(run, 4)
    images = [asking.some_picture(i, size) for i, size in enumerate([(4, 6), (5, 5), (4, 6)])]
    for image, (ids, _) in zip(images, service.predict(images), strict=True):
        np.testing.assert_array_equal(ids, image[..., 0] // 64)
    assert sizes == [(2, 4, 6), (1, 5, 5)]


def test_what_fails_in_a_batch_fails_alone(service):
    images = [asking.some_picture(i) for i in range(3)]
    images[1][0, 0] = BAD
    first, second, third = service.predict(images)
    assert isinstance(second, RuntimeError)
    np.testing.assert_array_equal(first[0], images[0][..., 0] // 64)
    np.testing.assert_array_equal(third[0], images[2][..., 0] // 64)
    (alone,) = service.predict([images[1]])
    assert isinstance(alone, RuntimeError)


def test_what_the_memory_is_too_short_for_is_refused(tmp_path):
    """4096x4096 at stride 8: affinities of 275 GB, which no system gives at once."""
    path = tmp_path / "dense.keras"
    Segmenter("tiny", "self_attention", 3, head_filters=4, head_kernel_size=1).save(path)
    service = Service(load_predictor(path))
    file = io.BytesIO()
    Image.new("RGB", (4096, 4096)).save(file, "PNG")
    told = "413: 4096x4096 pixels are too large: the affinity, .* takes 274.9 GB"
    with pytest.raises(Refused, match=told):
        service.answer(file.getvalue(), Options("ids"))
    large, small = service.predict([np.zeros((4096, 4096, 3), np.uint8), asking.some_picture(1)])
    assert isinstance(large, Refused) and large.status == 413
    assert small[0].shape == asking.some_picture(1).shape[:2]


def test_instances_in_batches(finder):
    images = [asking.some_picture(i) for i in range(2)]
    assert [len(found.scores) for found in finder.predict(images)] == [2, 2]


def test_the_card(service, finder):
    card = json.loads(json.dumps(service.card()))
    assert card["task"] == "segmentation" and card["class_names"] == list(NAMES)
    assert card["formats"] == ["json", "ids", "overlay"] and card["num_classes"] == 4
    assert card["limits"]["max_pixels"] == 25_000_000
    card = json.loads(json.dumps(finder.card()))
    assert card["formats"] == ["json", "overlay"] and card["category_ids"] == [17, 18]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"format": "jsom"}, 'did you mean "json"'),
        ({"forma": "json"}, "unknown parameter 'forma'"),
        ({"masks": "yes"}, "masks is 0 or 1, got 'yes'"),
        ({"score": "high"}, "score is a number, got 'high'"),
        ({"score": "nan"}, "score lies in 0 to 1"),
        ({"opacity": "1.5"}, "opacity lies in 0 to 1, got 1.5"),
    ],
)
def test_options_that_are_refused(query, reason):
    with pytest.raises(Refused, match=reason) as caught:
        Options.of(query)
    assert caught.value.status == 400


def test_options():
    assert Options.of({}) == Options.of({}, "*/*") == Options("json")
    assert Options.of({}, "image/png,*/*").format == "ids"
    assert Options.of({"format": "overlay"}, "image/png").format == "overlay"
    given = {"masks": "0", "legend": "false", "score": "0.5", "opacity": "1"}
    assert Options.of(given) == Options("json", False, 0.5, 1.0, False)
