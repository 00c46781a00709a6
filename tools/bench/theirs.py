"""PyTorch's side of `tools.beside_torch`: a process of one of its networks, without TensorFlow."""

from tools.bench import beside, detector, timing
from tools.bench.beside import CLASSES, DETECTOR, KEYS, WIDTH


def make(case):
    """(call, matrix product, facts) of PyTorch's network."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(case["threads"])
    if case["what"] in DETECTOR:
        return make_detector(case)
    from tools import mmseg_models
    from tools.bench import torch_networks

    (height, width), batch = case["size"], case["batch"]
    half = torch.autocast("cpu", torch.bfloat16, enabled=case["dtype"] == "bfloat16")
    channels = beside.channels_of(case["what"])
    inputs = torch.randn(batch, channels, height, width)
    if case["what"] == "dense":
        model = torch_networks.Attention(WIDTH, KEYS)
    else:
        model = mmseg_models.isanet()
        model.init_weights()
    model.train(case["what"] == "train")
    if case["name"] == "torch channels_last":
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if case["what"] == "train":
        function = torch_networks.loss_of(model)
    else:
        function = torch_networks.forward_of(model, case["what"])
    if case["name"] == "torch compile":
        function = torch.compile(function)
    if case["what"] == "train":
        labels = torch.randint(0, CLASSES, (batch, height, width))
        step = torch_networks.step_of(model, function, half)

        def call():
            step(inputs, labels)

    else:

        def call():
            with torch.inference_mode(), half:
                function(inputs)

    return call, _matmul(), {}


def make_detector(case):
    """(call, matrix product, facts) of the same parts of torchvision's."""
    import torch

    from tools import torchvision_operators  # noqa: F401 (before torchvision)

    from torchvision.models import detection  # isort: skip

    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    half = torch.autocast("cpu", torch.bfloat16, enabled=case["dtype"] == "bfloat16")
    heads, size = model.roi_heads, case["size"]
    number, channels = {
        "detector": (1, 3),
        "box_head": (detector.ROIS, detector.WIDTH),
        "mask_head": (detector.MASKS, detector.WIDTH),
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

    return call, _matmul(), {}


def _matmul():
    """A call that multiplies two matrices, as `timing.matmul`."""
    import torch

    a, b = (torch.randn(timing.GEMM, timing.GEMM) for _ in range(2))
    return lambda: a @ b


if __name__ == "__main__":
    beside.serve(make)
