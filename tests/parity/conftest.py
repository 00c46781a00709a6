"""Lets the comparisons import what they share."""

import importlib
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if importlib.util.find_spec("torchvision"):
    # Before timm and mmsegmentation, which import torchvision.
    importlib.import_module("tools.torchvision_operators")
