"""Predicting with a model, whatever it is kept in; `isa_tf.load_predictor` opens its files."""

from isa_tf.inference.contract import (
    METADATA_FILE,
    SegmentationContract,
    contract_of,
    contracts,
    read_contract,
    seen_size,
)
from isa_tf.inference.detection import DetectionProtocol, detect
from isa_tf.inference.findings import class_findings, findings, instance_findings
from isa_tf.inference.fuse import FusedModel, fuse
from isa_tf.inference.instance_predictor import InstancePredictor
from isa_tf.inference.instances import InstanceContract, Instances, Truth
from isa_tf.inference.pieces import Network, classify_in_pieces, fits_at_once
from isa_tf.inference.predictor import (
    Predictor,
    confusion_matrix,
    predictor_of_model,
    predictor_of_run,
    predictors,
    warm_up,
)
from isa_tf.inference.protocol import Protocol
from isa_tf.inference.results import Encoding, write_results
from isa_tf.inference.views import (
    class_dtype,
    classify,
    resize_image,
    resize_logits,
    slide,
    slide_tiles,
    view_logits,
    view_size,
    vote,
    window_starts,
)

__all__ = [
    "METADATA_FILE",
    "DetectionProtocol",
    "Encoding",
    "FusedModel",
    "InstanceContract",
    "InstancePredictor",
    "Instances",
    "Network",
    "Predictor",
    "Protocol",
    "SegmentationContract",
    "Truth",
    "class_dtype",
    "class_findings",
    "classify",
    "classify_in_pieces",
    "confusion_matrix",
    "contract_of",
    "contracts",
    "detect",
    "findings",
    "fits_at_once",
    "fuse",
    "instance_findings",
    "predictor_of_model",
    "predictor_of_run",
    "predictors",
    "read_contract",
    "resize_image",
    "resize_logits",
    "seen_size",
    "slide",
    "slide_tiles",
    "view_logits",
    "view_size",
    "vote",
    "warm_up",
    "window_starts",
    "write_results",
]
