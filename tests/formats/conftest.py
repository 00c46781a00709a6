import pytest
from exporting import make_model

import isa_tf


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A model with all there is to it, and its three files; LiteRT's for 66x74."""
    folder = tmp_path_factory.mktemp("exported") / "new"
    model = make_model(jit_compile=True, auxiliary_level="c1", auxiliary_filters=8)
    saved = isa_tf.export(model, folder / "saved")
    litert = isa_tf.export(model, folder / "model.tflite", image_size=(66, 74))
    model.save(folder / "model.keras")
    return model, {"keras": folder / "model.keras", "saved": saved, "litert": litert}
