"""The same networks in isa_tf, PyTorch (mmsegmentation) and OpenVINO, timed in turn in one run.

    python -m tools.beside_torch head --sizes=64x128,128x128
    python -m tools.beside_torch model --sizes=512x1024 --dtypes=float32,bfloat16
    python -m tools.beside_torch train --sizes=256x512 --batch=2
    python -m tools.beside_torch dense --sizes=64x128
    python -m tools.beside_torch detector --sizes=800x1216
    python -m tools.beside_torch box_head
    python -m tools.beside_torch mask_head

head: the 3x3 convolution, the interlaced module and the classifier, on a map of 2048 channels.
model: ISANet with ResNet-50 at output stride 8, from image to logits of its size.
train: a step of it, with auxiliary loss and SGD. dense: `SelfAttention2D` and torch's products;
"interlaced" is ISA's two attentions in its place, fused, with the same projections.
detector: ResNet-50, pyramid and proposal head of Mask R-CNN, beside torchvision's
maskrcnn_resnet50_fpn. box_head and mask_head: its heads, of 1000 and 100 boxes' maps. What
torchvision has compiled operators for, suppression and RoIAlign, is in none of them, as these do
not load beside the CPU build of PyTorch: see `tools.benchmark detector`.

PyTorch runs eagerly, in channels_last, and compiled; isa_tf as a tf.function, as `inference.fuse`
makes it, and, of model, as the SavedModel that is exported of that, with XLA and without; OpenVINO
has the very network of isa_tf, converted and compiled for the size. Training is by minimal
filtering from 256 channels on, and recomputes.

Each contestant is a process of its own that holds its network and works only when called; they are
called in turn, as many rounds as asked for. The rate is that of the network's operations, counted
on ours, beside the better of the two frameworks' float32 matrix product, measured in the same
turns. The memory is what a warm call holds at its highest beyond what the process held before its
first one; it is measured before the turns, in one more process for each, whose freed blocks go back
to the system at once (`benchmark.RETURN_MEMORY`).

PyTorch and OpenVINO are in the environment of `make parity`. Writes NAME.csv and NAME.md into
--output.
"""

import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from absl import app, flags

from tools import benchmark, benchmark_detector

FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
_SIZES = flags.DEFINE_list("sizes", None, "Of maps or images, HEIGHTxWIDTH.", flag_values=FLAGS)
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "float32, bfloat16.", flag_values=FLAGS)
_BATCH = flags.DEFINE_integer("batch", None, "By default 2 in training, else 1.", flag_values=FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Calls of each contestant.", 1, flag_values=FLAGS)
_THREADS = flags.DEFINE_integer("threads", os.cpu_count(), "Of each.", 1, flag_values=FLAGS)
_ONLY = flags.DEFINE_list("only", None, "Contestants; by default all.", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string(
    "output", "runs/beside_torch", "Folder to write into.", flag_values=FLAGS
)

SIZES = {"head": ["64x128", "128x128"], "model": ["512x1024"], "train": ["256x512"]}
SIZES |= {"dense": ["64x64", "64x128"], "detector": ["800x1216"]}
SIZES |= {"box_head": ["7x7"], "mask_head": ["14x14"]}
# The parts of Mask R-CNN that each is made of.
DETECTOR = {
    "detector": ("backbone", "pyramid", "rpn_head"),
    "box_head": ("box_head",),
    "mask_head": ("mask_head",),
}
INTERLACED = "isa_tf interlaced"
OURS = {
    "head": ("isa_tf", "isa_tf fused"),
    "model": ("isa_tf", "isa_tf fused", "isa_tf saved_model", "isa_tf saved_model without XLA"),
    "train": ("isa_tf",),
    "dense": ("isa_tf", "isa_tf fused", INTERLACED),
    **dict.fromkeys(DETECTOR, ("isa_tf", "isa_tf fused")),
}
THEIRS = ("torch eager", "torch channels_last", "torch compile")
OPENVINO = "openvino"  # of head and model, in float32
CHANNELS, WIDTH, KEYS, CLASSES = 2048, 512, 256, 19
COLUMNS = {
    "what": "{}",
    "size": "{}",
    "dtype": "{}",
    "contestant": "{}",
    "ms": "{:.0f}",
    "ratio": "{:.2f}",
    "openvino_ratio": "{:.2f}",
    "rate": "{:.2f}",
    "memory_mb": "{:.0f}",
}
HEADINGS = ("", "size", "dtype", "contestant", "median (ms)", "of best torch")
HEADINGS += ("of OpenVINO", "of matmul rate")
HEADINGS += ("memory (MB)",)


def main(argv):
    if len(argv) == 3 and argv[1] == "contestant":  # what this file starts itself with
        return serve(json.loads(argv[2]))
    if len(argv) != 2 or argv[1] not in OURS:
        raise app.UsageError(f"What is to be timed? {', '.join(OURS)}")
    what, rows = argv[1], []
    known = contestants_of(what)
    if unknown := set(_ONLY.value or ()) - set(known):
        raise app.UsageError(f"--only={','.join(unknown)}: there are {', '.join(known)}")
    if unknown := set(_DTYPES.value) - {"float32", "bfloat16"}:
        raise app.UsageError(f"--dtypes={','.join(unknown)}: there are float32 and bfloat16")
    asked = set(_ONLY.value or known)
    theirs = "torchvision" if what in DETECTOR else "mmseg"
    for module, names in {theirs: THEIRS, "openvino": [OPENVINO]}.items():
        if asked & set(names) and not importlib.util.find_spec(module):
            raise app.UsageError(f"{module} is in the environment of `make parity` alone")
    for text in _SIZES.value or SIZES[what]:
        for dtype in _DTYPES.value:
            case = {"what": what, "size": benchmark.parse_size(text), "dtype": dtype}
            case["batch"] = _BATCH.value or (2 if what == "train" else 1)
            rows += compete({**case, "threads": _THREADS.value})
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    text = report(rows)
    (folder / f"{what}.md").write_text(text, encoding="utf-8")
    with open(folder / f"{what}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(COLUMNS), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{text}\nwritten: {folder / what}.md, .csv")
    return 0


def contestants_of(what):
    """The names of those that can do it."""
    return (*THEIRS, *([OPENVINO] if what in ("head", "model") else []), *OURS[what])


def report(rows):
    """The Markdown of the table and of the machine."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for row in rows:
        cells = (form.format(row[key]) if key in row else "" for key, form in COLUMNS.items())
        lines.append("| " + " | ".join(cells) + " |")
    versions = [benchmark.machine()]
    if any(row["contestant"] in THEIRS for row in rows):
        package = "torchvision" if rows[0]["what"] in DETECTOR else "mmsegmentation"
        versions += [f"{name} {version(name)}" for name in ("torch", package)]
    if any(row["contestant"] == OPENVINO for row in rows):
        versions.append(f"openvino {version('openvino')}")
    threads = f"{_THREADS.value} threads, {_ROUNDS.value} rounds"
    command = f"`python -m tools.beside_torch {' '.join(sys.argv[1:])}`"
    return "\n".join([*lines, "", "; ".join([*versions, threads]) + ". " + command]) + "\n"


# === The one that calls ===


class Contestant:
    """A process that holds one network and runs it when told to.

    Args:
        name: str, one of `THEIRS` or `OURS`.
        case: dict, what to make.
        returns_memory: bool, whether what it frees goes back to the system at once, which costs
            time. Defaults to `False`.
    """

    def __init__(self, name, case, returns_memory=False):
        self.name = name
        environment = dict(os.environ)
        if returns_memory:
            environment |= benchmark.RETURN_MEMORY
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.beside_torch", "contestant"]
            + [json.dumps({**case, "name": name})],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question):
        """The answer to "ready", "memory", "call" or "matmul", as it comes out of the process."""
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):  # and not what a library prints
                return json.loads(line.removeprefix("answer "))
        raise ChildProcessError(f"{self.name} has ended; what it had to say is above")

    def end(self):
        self.process.kill()
        self.process.wait()


def compete(case):
    """A row for each contestant in one case."""
    names = [name for name in contestants_of(case["what"]) if name in (_ONLY.value or [name])]
    contestants, rows = [], []
    try:
        for name in names:
            print(f"{case['what']} {case['size']} {case['dtype']}: {name}", file=sys.stderr)
            measured = Contestant(name, case, returns_memory=True)
            try:
                memory = measured.ask("memory")
            finally:
                measured.end()
            contestants.append(Contestant(name, case))
            facts = contestants[-1].ask("ready")
            if memory is not None:
                facts["memory_mb"] = memory
            size = "x".join(map(str, case["size"]))
            rows.append({**case, "size": size, "contestant": name, "times": [], **facts})
        rates = []
        for round_ in range(_ROUNDS.value):
            # Whoever comes first in one round comes last in the next.
            order = list(zip(contestants, rows, strict=True))
            for contestant, row in order if round_ % 2 else reversed(order):
                row["times"].append(contestant.ask("call"))
                rates.append(contestant.ask("matmul"))
    finally:
        for contestant in contestants:
            contestant.end()
    for row in rows:
        row["ms"] = statistics.median(row["times"])
    torch = [row["ms"] for row in rows if row["contestant"] in THEIRS]
    # PyTorch's networks do what ours do, but for the one that ours is compared with besides.
    ours = [row for row in rows if "gflops" in row and row["contestant"] != INTERLACED]
    for row in rows:
        if torch:
            row["ratio"] = row["ms"] / min(torch)
        for other in rows:
            if other["contestant"] == OPENVINO:
                row["openvino_ratio"] = row["ms"] / other["ms"]
        if "gflops" in row or ours:
            gflops = row["gflops"] if "gflops" in row else ours[0]["gflops"]
            row["rate"] = gflops / (row["ms"] / 1000) / np.percentile(rates, 90)
    return rows


# === The ones that are called ===


def serve(case):
    """Makes a network, then answers questions from standard input with lines on standard output."""
    ours = case["name"] not in THEIRS
    call, product, facts = (make_ours if ours else make_theirs)(case)
    before = benchmark.resident_memory()
    call()
    call()

    def timed(function):
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)

    product()
    for question in sys.stdin:
        if question.strip() == "ready":
            answer = facts
        elif question.strip() == "memory":
            answer = benchmark.peak_memory(call, before)
        elif question.strip() == "call":
            answer = timed(call)
        else:
            answer = 2 * benchmark.GEMM**3 / min(timed(product) for _ in range(3)) / 1e6
        print("answer", json.dumps(answer), flush=True)
    return 0


def make_ours(case):
    """(call, matrix product, facts) of isa_tf's network."""
    import keras
    import tensorflow as tf

    from isa_tf import backbones, cost, inference, runtime, training
    from isa_tf.layers import ConvNormAct, InterlacedSparseAttention, SelfAttention2D
    from isa_tf.losses import PixelCrossEntropy
    from isa_tf.models import ISANet

    tf.config.threading.set_intra_op_parallelism_threads(case["threads"])
    if case["what"] in DETECTOR:
        return make_our_detector(case)
    dtype = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[case["dtype"]]
    rng, (height, width) = np.random.default_rng(0), case["size"]
    channels = {"head": CHANNELS, "dense": WIDTH}.get(case["what"], 3)
    shape = (case["batch"], height, width, channels)
    if channels == 3:
        inputs = rng.integers(0, 256, shape).astype("float32")
        auxiliary = "c4" if case["what"] == "train" else None
        train = {"minimal_filtering": 256} if case["what"] == "train" else {}
        backbone = backbones.create(
            "resnet50_v1c", 8, recompute=case["what"] == "train", dtype=dtype, **train
        )
        model = ISANet(backbone, CLASSES, auxiliary_level=auxiliary, dtype=dtype, **train)
    else:
        inputs = rng.normal(size=shape).astype("float32")
        keras.config.set_dtype_policy(dtype)
        map_ = x = keras.Input((None, None, channels))
        if case["what"] == "dense":
            layer = SelfAttention2D(key_filters=KEYS)
            if case["name"] == INTERLACED:
                layer = InterlacedSparseAttention(8, key_filters=KEYS, fuse=False)
            x = layer(x)
        else:
            x = ConvNormAct(WIDTH, 3)(x)
            x = InterlacedSparseAttention(partition=8, key_filters=KEYS)(x)
            x = keras.layers.Conv2D(CLASSES, 1)(x)
        model = keras.Model(map_, x)
    facts = {"gflops": cost.flops_by_kind(model, shape).total / 1e9}
    inputs = tf.constant(inputs)
    if case["what"] == "train":
        labels = tf.constant(rng.integers(0, CLASSES, (*shape[:3],)).astype("uint8"))
        optimizer = training.CoupledSGD(0.01, momentum=0.9, l2=5e-4)
        model.compile(optimizer, PixelCrossEntropy(), jit_compile=False)
        facts["gflops"] *= 3  # the products of a backward pass are twice those of the forward one

        def call():
            model.train_on_batch(inputs, labels)

    else:
        network = model
        if case["name"] not in ("isa_tf", OPENVINO):
            network = inference.fuse(model, product_dtype=runtime.product_dtype(dtype))
        function = tf.function(lambda x: network(x, training=False)).get_concrete_function(inputs)
        if case["name"] == OPENVINO:
            call = _in_openvino(function, inputs.numpy(), case["threads"])
        elif "saved_model" in case["name"]:
            call = _in_saved_model(network, inputs, "without" not in case["name"])
        else:

            def call():
                function(inputs).numpy()

    a, b = (tf.random.stateless_normal([benchmark.GEMM] * 2, (0, i)) for i in range(2))
    product = tf.function(lambda: tf.matmul(a, b))
    return call, lambda: product().numpy(), facts


def make_our_detector(case):
    """(call, matrix product, facts) of parts of isa_tf's Mask R-CNN."""
    import keras
    import tensorflow as tf

    from isa_tf import cost, inference, runtime

    dtype = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[case["dtype"]]
    keras.config.set_dtype_policy(dtype)
    model, parts = benchmark_detector.make_model(), DETECTOR[case["what"]]
    inputs = tf.constant(benchmark_detector.inputs_of(parts[0], case["size"], model))

    def chain(network):
        functions = [benchmark_detector.function_of(part, network) for part in parts]

        def run(x):
            for function in functions:
                x = function(x)
                if isinstance(x, dict):  # a backbone's maps
                    x = {level: x[level] for level in ("c2", "c3", "c4", "c5")}
            return x

        return tf.function(run, jit_compile=False).get_concrete_function(inputs)

    plain = chain(model)
    facts = {"gflops": cost.graph_flops(plain.graph).total / 1e9}
    function = plain
    if case["name"] != "isa_tf":
        product = runtime.product_dtype(dtype)
        function = chain(inference.fuse(model, product_dtype=product))

    def call():
        for tensor in tf.nest.flatten(function(inputs)):
            tensor.numpy()

    a, b = (tf.random.stateless_normal([benchmark.GEMM] * 2, (0, i)) for i in range(2))
    product = tf.function(lambda: tf.matmul(a, b))
    return call, lambda: product().numpy(), facts


def make_their_detector(case):
    """(call, matrix product, facts) of the same parts of torchvision's."""
    import torch

    from tools import torchvision_operators  # noqa: F401 (before torchvision)

    from torchvision.models import detection  # isort: skip

    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    half = torch.autocast("cpu", torch.bfloat16, enabled=case["dtype"] == "bfloat16")
    heads, size = model.roi_heads, case["size"]
    number, channels = {
        "detector": (1, 3),
        "box_head": (benchmark_detector.ROIS, benchmark_detector.WIDTH),
        "mask_head": (benchmark_detector.MASKS, benchmark_detector.WIDTH),
    }[case["what"]]
    inputs = torch.randn(number, channels, *size)
    if case["name"] == "torch channels_last":
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)

    def forward(x):
        if case["what"] == "detector":
            return model.rpn.head(list(model.backbone(x).values()))
        if case["what"] == "box_head":
            return heads.box_predictor(heads.box_head(x))
        return heads.mask_predictor(heads.mask_head(x))

    function = torch.compile(forward) if case["name"] == "torch compile" else forward

    def call():
        with torch.inference_mode(), half:
            function(inputs)

    a, b = (torch.randn(benchmark.GEMM, benchmark.GEMM) for _ in range(2))
    return call, lambda: a @ b, {}


def _in_openvino(function, inputs, threads):
    """The call of a concrete function's graph in OpenVINO, in float32."""
    import openvino

    core = openvino.Core()
    network = openvino.convert_model(function)
    network.reshape(inputs.shape)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    options["PERFORMANCE_HINT"] = "LATENCY"
    compiled = core.compile_model(network, "CPU", options)
    return lambda: compiled([inputs])


def _in_saved_model(network, inputs, jit_compile):
    """The call of what is exported of a network and loaded again."""
    import tempfile

    import tensorflow as tf

    import isa_tf

    folder = tempfile.mkdtemp()
    isa_tf.export(network, f"{folder}/served", format="saved_model", jit_compile=jit_compile)
    loaded = tf.saved_model.load(f"{folder}/served")
    serve, image = loaded.signatures["serving_default"], tf.cast(inputs, tf.uint8)

    def call():
        serve(image=image)["class_id"].numpy()

    call.loaded = loaded  # its variables live no longer than this object
    return call


def make_theirs(case):
    """(call, matrix product, facts) of PyTorch's network."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(case["threads"])
    if case["what"] in DETECTOR:
        return make_their_detector(case)
    from tools import mmseg_models

    (height, width), batch = case["size"], case["batch"]
    half = torch.autocast("cpu", torch.bfloat16, enabled=case["dtype"] == "bfloat16")
    channels = {"head": CHANNELS, "dense": WIDTH}.get(case["what"], 3)
    inputs = torch.randn(batch, channels, height, width)
    if case["what"] == "dense":
        model = _Dense()
    else:
        model = mmseg_models.isanet()
        model.init_weights()
    model.train(case["what"] == "train")
    if case["name"] == "torch channels_last":
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    resize = torch.nn.functional.interpolate

    def forward(x):
        if case["what"] == "head":
            return model.decode_head([None, None, None, x])
        if case["what"] == "dense":
            return model(x)
        maps = model.extract_feat(x)
        return resize(model.decode_head(maps), x.shape[2:], mode="bilinear")

    def loss_of(x, labels):
        maps = model.extract_feat(x)
        loss = 0
        for head, weight in ((model.decode_head, 1.0), (model.auxiliary_head, 0.4)):
            logits = resize(head(maps), x.shape[2:], mode="bilinear")
            loss = loss + weight * torch.nn.functional.cross_entropy(logits, labels)
        return loss

    function = loss_of if case["what"] == "train" else forward
    if case["name"] == "torch compile":
        function = torch.compile(function)
    if case["what"] == "train":
        labels = torch.randint(0, CLASSES, (batch, height, width))
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

        def call():
            optimizer.zero_grad(set_to_none=True)
            with half:
                loss = function(inputs, labels)
            loss.backward()
            optimizer.step()

    else:

        def call():
            with torch.inference_mode(), half:
                function(inputs)

    a, b = (torch.randn(benchmark.GEMM, benchmark.GEMM) for _ in range(2))
    return call, lambda: a @ b, {}


def _Dense():
    """The block of `SelfAttention2D` in PyTorch: matmul, softmax, matmul."""
    import torch

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()

            def conv(reads, filters):
                layers = torch.nn.Conv2d(reads, filters, 1, bias=False)
                return torch.nn.Sequential(layers, torch.nn.BatchNorm2d(filters), torch.nn.ReLU())

            self.query = torch.nn.Sequential(conv(WIDTH, KEYS), conv(KEYS, KEYS))
            self.key = torch.nn.Sequential(conv(WIDTH, KEYS), conv(KEYS, KEYS))
            self.value = torch.nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
            self.output = conv(WIDTH, WIDTH)

        def forward(self, x):
            q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
            affinity = torch.softmax(q.transpose(1, 2) @ k * KEYS**-0.5, -1)
            return self.output((v @ affinity.transpose(1, 2)).reshape(x.shape))

    return Dense()


if __name__ == "__main__":
    app.run(main)
