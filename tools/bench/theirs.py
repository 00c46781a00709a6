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

    (height, width), batch = case["size"], case["batch"]
    half = torch.autocast("cpu", torch.bfloat16, enabled=case["dtype"] == "bfloat16")
    channels = beside.channels_of(case["what"])
    inputs = torch.randn(batch, channels, height, width)
    if case["what"] == "dense":
        model = _dense()
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

    return call, _matmul(), {}


def _dense():
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
