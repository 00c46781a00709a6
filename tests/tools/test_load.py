import asking
import numpy as np
import pytest

from isa_tf.inference import Predictor
from isa_tf.serving import Service, make_app
from isa_tf.serving.app import Local
from tools import load


@pytest.mark.slow
def test_its_garbage_is_refused_as_it_says():
    pytest.importorskip("starlette", reason="Starlette is not installed")

    def run(images):
        return np.zeros(images.shape[:3], np.uint8), np.ones(images.shape[:3], np.float32)

    app = make_app({"m": {"1": Local(Service(Predictor(run, 2)))}})
    for kind, contents in load.garbage(asking.saved(asking.some_picture())).items():
        headers = {"Content-Type": "application/json"} if kind.endswith("json") else {}
        answer = asking.ask(app, "POST", "/v1/models/m/predict", contents, headers)
        assert f"{answer.status}" == kind[:3], kind
        assert answer.told["error"]
