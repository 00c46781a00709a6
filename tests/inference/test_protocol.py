import json

import pytest

from isa_tf.inference import Protocol

SLIDE = {"mode": "slide", "crop_size": (7, 9), "stride": (5, 4)}


@pytest.mark.parametrize(
    "values",
    [
        {},
        SLIDE,
        {"mode": "slide", "crop_size": 769, "stride": (513,), "scales": 0.5},
        {"scales": [0.1, 1, 1.75], "flip": True, "flip_pairs": [[14, 15], [16, 17]]},
        {"fit_size": [2048, 512]},
        {"pad_size": [1025, 2049]},
        {"exact_size": 473, "size_divisor": 8},
    ],
)
def test_protocol_round_trip(values):
    protocol = Protocol(**values)
    written = json.loads(json.dumps(protocol.to_dict()))
    assert written == protocol.to_dict()
    assert Protocol.from_dict(written) == Protocol.from_dict(values) == protocol
    assert hash(Protocol.from_dict(written)) == hash(protocol)


def test_protocol_spellings():
    protocol = Protocol("slide", crop_size=769, stride=[513], scales=2)
    assert protocol == Protocol("slide", (769, 769), (513, 513), (2.0,))
    assert Protocol(scales=(0.5, 1), flip=True).num_views() == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "sliding"}, 'mode must be "whole" or "slide", got \'sliding\''),
        ({"mode": "slide"}, "needs a crop_size and a stride"),
        ({"mode": "slide", "crop_size": 8}, "needs a crop_size and a stride"),
        ({"crop_size": 8, "stride": 4}, 'of mode "slide" alone'),
        ({**SLIDE, "stride": (5, 10)}, "skips pixels"),
        ({**SLIDE, "crop_size": (7, 0)}, "crop_size must be an int above 0 or two"),
        ({**SLIDE, "stride": (1, 2, 3)}, "stride must be"),
        ({"fit_size": 512.5}, "fit_size must be"),
        ({"fit_size": "512"}, "fit_size must be"),
        ({"pad_size": (512, 0)}, "pad_size must be"),
        ({"pad_size": 512, "fit_size": 512}, "fit_size and pad_size exclude each other"),
        ({"exact_size": 8, "fit_size": 8}, "fit_size and exact_size exclude each other"),
        ({"exact_size": (8, 0)}, "exact_size must be"),
        ({"size_divisor": 0}, "size_divisor must be an int above 0, got 0"),
        ({"size_divisor": 8.0}, "size_divisor must be"),
        ({**SLIDE, "size_divisor": 8}, 'size_divisor is of mode "whole" alone'),
        ({"scales": ()}, "scales must be numbers above 0, at least one"),
        ({"scales": (1.0, 0.0)}, "scales must be"),
        ({"scales": (float("nan"),)}, "scales must be"),
        ({"scales": ("abc",)}, "scales must be.*abc"),
        ({"flip": 1}, "flip must be True or False"),
        ({"flip_pairs": (14, 15)}, "flip_pairs must be pairs"),
        ({"flip_pairs": ((14, 15, 16),)}, "flip_pairs must be pairs"),
        ({"flip_pairs": ((14, 15), (15, 16))}, "no id twice"),
        ({"flip_pairs": ((-1, 0),)}, "flip_pairs must be"),
        ({"crop_sise": 8}, "'crop_sise'; did you mean .crop_size"),
    ],
)
def test_wrong_protocols(values, message):
    with pytest.raises(ValueError, match=message):
        Protocol.from_dict(values)


def test_what_stands_for_a_protocol():
    protocol = Protocol(scales=(0.5, 1), flip=True)
    assert Protocol.of(protocol) is protocol
    assert Protocol.of(protocol.to_dict()) == protocol
    assert Protocol.of(None) == Protocol.of({}) == Protocol()
    with pytest.raises(ValueError, match="'flop'; did you mean .flip"):
        Protocol.of({"flop": True})
