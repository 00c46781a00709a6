"""ISANet beside a PyTorch rendering of the official one, with its weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the environment of `make parity` alone")

import keras  # noqa: E402
import openseg_reference as reference  # noqa: E402
from parity import check, images, randomize  # noqa: E402

from isa_tf.models import from_checkpoint  # noqa: E402


def logits(model, image):
    bgr = image[..., ::-1].astype("float32") - np.array(reference.MEAN_BGR, "float32")
    with torch.no_grad():
        found = model(torch.from_numpy(np.ascontiguousarray(bgr.transpose(0, 3, 1, 2))))
    return [t.numpy().transpose(0, 2, 3, 1) for t in found]


@pytest.mark.parametrize(
    ("filters", "partitions"),
    [(64, ((8, 8),)), (8, ((8, 8), (4, 4))), (8, ((4, 8), (8, 4), (2, 2)))],
    ids=["r50", "two-partitions", "three-partitions"],
)
def test_logits_of_both_heads(filters, partitions, tmp_path):
    theirs = reference.OfficialISANet(7, partitions=partitions, filters=filters).eval()
    randomize(theirs, lambda image: logits(theirs, image))
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, reference.InPlaceABN):
                module.weight[::2] *= -1  # of which in-place activated BN takes no notice
    path = tmp_path / "isanet.pth"
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": state, "config_dict": {"network": "isanet"}}, path)
    ours, source, report = from_checkpoint(
        path, context_options={"partition": [*map(tuple, partitions)]}
    )
    assert source == "openseg" and report == ([], [])
    for i, head in enumerate(("logits", "auxiliary_logits")):
        model = keras.Model(ours.input, ours.get_layer(head).output)
        xs = [images(*size) for size in [(128, 128), (129, 257), (97, 161)]]
        check((model(x.astype("float32")), logits(theirs, x)[i]) for x in xs)
