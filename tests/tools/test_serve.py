import re

import pytest
from absl import app

from tools import serve


@pytest.fixture
def path(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"")
    (tmp_path / "a=b.onnx").write_bytes(b"")
    return tmp_path / "model.tflite"


def test_names_and_versions(path):
    odd = path.with_name("a=b.onnx")
    found = serve.models_of([f"s@2={path}", f"s={path}", f"{path}", f"{odd}"])
    assert found == {"s": {"2": path, "1": path}, "model": {"1": path}, "a=b": {"1": odd}}


def test_replicas():
    assert serve.replicas_of(["3"]) == (3, 3) and serve.replicas_of(["1", "4"]) == (1, 4)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "Which model"),
        (["--model=nowhere.tflite"], "no such file"),
        (["--model={0}", "--model={0}"], "two models of the name 'model' and version '1'"),
        (["--model=a/b={0}"], "'a/b' is no name"),
        (["--model={0}", "--replicas=0"], "--replicas is a number, or LEAST,MOST"),
        (["--model={0}", "--replicas=3,2"], "got 3,2"),
        (["--model={0}", "--replicas=1,2,3"], "got 1,2,3"),
        (["--model={0}", "--body_seconds=0"], "body_seconds must be above 0"),
        (["--model={0}", "left"], "Unexpected arguments: left"),
    ],
)
def test_what_it_refuses(run, path, flags, reason):
    with pytest.raises(app.UsageError, match=re.escape(reason)):
        run(serve, *(flag.format(path) for flag in flags))
