#!/usr/bin/env bash
# Tries a wheel as somebody who has nothing but it: in a fresh environment, outside of any checkout.
#
#     bash tools/try_wheel.sh dist/isa_tf-0.1.0-py3-none-any.whl
#
# Installs it, imports it, asks the command for help, trains a few steps on made-up harbours, exports
# and predicts. PYTHON is the interpreter of the environment, python3.11 where it is not set.
set -euo pipefail
wheel="$(realpath "$1")"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH
export TF_CPP_MIN_LOG_LEVEL=3
cd "$place"

say() { echo "== $*"; }

say "installing $(basename "$wheel")"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --upgrade pip
venv/bin/python -m pip install --quiet "$wheel"
venv/bin/python -m pip check

say "import"
venv/bin/python - "$place/venv" "$(basename "$wheel")" <<'PYTHON'
import sys
from importlib.metadata import version

import isa_tf

assert isa_tf.__file__.startswith(sys.argv[1]), isa_tf.__file__
assert isa_tf.__version__ == version("isa_tf") == sys.argv[2].split("-")[1], isa_tf.__version__
from isa_tf.web.folder import is_built

assert is_built(), "the wheel has no page for browsers: make web comes first"
print(isa_tf.__version__)
PYTHON

say "isa-tf --help"
venv/bin/isa-tf --version
venv/bin/isa-tf --help
for name in $(venv/bin/isa-tf --help | awk '/^  [a-z_]+  /{print $1}'); do
  venv/bin/isa-tf "$name" --help | grep -q "^flags:" || { echo "isa-tf $name --help"; exit 1; }
done

say "isa-tf train"
venv/bin/isa-tf train --config=synthetic --workdir=run \
  --config.data.options.num_examples.train=8 --config.data.options.num_examples.val=2 \
  --config.data.batch_size=2 --config.train.warmup_steps=0 \
  --config.train.steps=4 --config.train.validate_every=4 --config.train.pictures=1
test -s run/best.keras

say "isa-tf export"
venv/bin/isa-tf export --model=run/best.keras --format=saved_model --output=exported
test -s exported/saved_model/saved_model.pb

say "isa-tf predict"
venv/bin/python -c "
import numpy as np
from PIL import Image
Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), 'uint8')).save('photo.png')"
venv/bin/isa-tf predict --model=exported/saved_model --images=photo.png --output=predicted
test -s predicted/photo_label.png

say "all of it works"
