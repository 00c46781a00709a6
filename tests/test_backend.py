"""Other backends of Keras are refused when the package is imported, by name."""

import json
import os
import subprocess
import sys

import pytest

from isa_tf import backend


def run(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_another_backend(name):
    """Whether it is installed or not."""
    found = run("import isa_tf.layers", KERAS_BACKEND=name)
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: isa_tf is Keras on TensorFlow, and Keras's backend is '{name}': set "
        "KERAS_BACKEND=tensorflow, or the backend in ~/.keras/keras.json, before Keras is imported"
    )


def test_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert backend.configured() == "tensorflow"
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax"}))
    assert backend.configured() == "jax"
    with pytest.raises(ImportError, match="Keras's backend is 'jax'"):
        backend.check()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # counts before the file
    backend.check()
    (tmp_path / "keras.json").write_text("[")
    monkeypatch.delenv("KERAS_BACKEND")
    assert backend.configured() == "tensorflow"
