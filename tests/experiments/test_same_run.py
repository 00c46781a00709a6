"""A training is the same however it is dealt out: on one device, replicas, processes."""

from pathlib import Path

import numpy as np
import processes
import pytest

from isa_tf import training

SCRIPT = Path(__file__).with_name("deal.py")
# name: (strategy, processes, logical devices of each)
DEALINGS = {
    "two replicas": ("mirrored", 1, 2),
    "two processes": ("multi_worker", 2, 1),
    "four replicas": ("mirrored", 1, 4),
    "two processes of two replicas": ("multi_worker", 2, 2),
}


def deal(folder, strategy, workers, devices):
    """Runs it; returns what it saw, by dtype."""
    command = [SCRIPT, str(folder), strategy, str(devices)]
    processes.outputs(processes.start_script(command, workers), timeout=500)
    found = {}
    for dtype in ("float32", "float64"):
        with np.load(folder / f"{dtype}.npz") as file:
            rows = training.read_log(folder / dtype / training.LOG)
            found[dtype] = file["losses"], file["gradient"], rows
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return deal(tmp_path_factory.mktemp("alone"), "one_device", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEALINGS)
def test_one_run(alone, tmp_path, name):
    found = deal(tmp_path, *DEALINGS[name])
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-6)):
        losses, gradient, rows = found[dtype]
        expected, expected_gradient, expected_rows = alone[dtype]
        assert len(losses) == len(expected) == {"float32": 3, "float64": 20}[dtype]
        largest = np.abs(expected_gradient).max()
        assert largest > 0 and len(gradient) == len(expected_gradient)
        assert np.abs(gradient - expected_gradient).max() <= tolerance * largest
        np.testing.assert_allclose(losses, expected, rtol=tolerance)
        for row, other in zip(rows, expected_rows, strict=True):
            assert row["step"] == other["step"]
            np.testing.assert_allclose(row["val_loss"], other["val_loss"], rtol=10 * tolerance)
            scores = [key for key in other if key.startswith("val_") and "iou" in key]
            assert len(scores) > 5
            if dtype == "float64":  # to the last pixel of five images, which no dealing divides
                assert {k: row[k] for k in scores} == {k: other[k] for k in scores}
