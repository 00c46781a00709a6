"""PyTorch's side of `tools.bench.device`: a process of some of its networks, on a GPU or a CPU."""

import contextlib
import functools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tools.bench import jobs, processes, torch_networks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Case:
    """A network, made and called once, which compiles it.

    Args:
        about: dict of the case, with "contestant" and "device".
    """

    def __init__(self, about):
        torch.manual_seed(0)
        self.about, self.device = about, torch.device(about["device"])
        how, train = about["contestant"], about["what"] == "train"
        if about["what"] == "module":
            partition = {"isa": 8, "self_attention": None}[about["module"]]
            width, kernels = about["channels"], "kernels" in how
            model = torch_networks.Module(width, width // 2, partition, kernels)
            shape = (about["batch"], width, *about["size"])
        else:
            model = torch_networks.ISANet()
            shape = (about["batch"], 3, *about["size"])
        self.model = model.to(self.device).train(about["pass"] != "forward")
        self.inputs = torch.randn(shape, device=self.device)
        if about["what"] != "module" and how != "torch eager":
            self.model = self.model.to(memory_format=torch.channels_last)
            self.inputs = self.inputs.contiguous(memory_format=torch.channels_last)
        self.half = torch.autocast(
            self.device.type, torch.bfloat16, enabled=about["dtype"] == "bfloat16"
        )
        if train:
            function = torch_networks.loss_of(self.model)
        else:
            function = torch_networks.forward_of(self.model, about["what"])
        if "compile" in how:
            function = torch.compile(function)
        self.call = {"forward": self._forward, "backward": self._backward, "step": self._step}[
            about["pass"]
        ](function)
        self.call()
        self.give_back()

    def _forward(self, function):
        def call():
            with torch.inference_mode(), self.half:
                return function(self.inputs)

        return call

    def _backward(self, function):
        self.inputs.requires_grad_()
        asked = [self.inputs, *self.model.parameters()]

        def call():
            with self.half:
                loss = function(self.inputs).float().square().mean()
            return torch.autograd.grad(loss, asked)

        return call

    def _step(self, function):
        batch, (height, width) = self.about["batch"], self.about["size"]
        labels = torch.randint(0, 19, (batch, height, width), device=self.device)
        step = torch_networks.step_of(self.model, function, self.half)
        return functools.partial(step, self.inputs, labels)

    def wait(self, result=None):
        """Returns once what was started is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def memory_mb(self):
        """What a call holds at its highest beyond what is held before it; `None` without a GPU."""
        if self.device.type != "cuda":
            return None
        self.model.zero_grad(set_to_none=True)
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.call()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def time(self, seconds):
        """What `jobs.Jobs` is asked for: a dict of figures."""
        torch.backends.cudnn.benchmark = True  # now that nothing else runs
        first = self.call()
        facts = jobs.times(self.call, self.wait, seconds)
        if self.about["what"] == "train":
            facts["losses"] = [float(first), float(self.call())]
        del first
        facts["memory_mb"] = self.memory_mb()
        facts["parameters"] = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.give_back()
        return facts

    def give_back(self):
        """The other processes may have the memory that is free."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def matmul(device, size, dtype):
    """TFLOP/s of a matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else None
    return jobs.rate(lambda: a @ b, lambda _: wait and wait(), size)


def main(case):
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = json.loads(Path(case["cases"]).read_text())
    makers = [functools.partial(Case, {**about, "device": device}) for about in cases]
    # One thread makes and times: what is compiled in it is compiled for its settings.
    worker = ThreadPoolExecutor(1)
    pool = ThreadPoolExecutor(1)
    made = jobs.Jobs(pool, [functools.partial(_in, worker, m) for m in makers], worker)
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__},
    }
    with contextlib.suppress(ImportError):
        import triton

        facts["versions"]["triton"] = triton.__version__
    answers = {"facts": lambda: facts, "matmul": functools.partial(matmul, device, case["matmul"])}
    processes.serve({**made.answers(), **answers})


def _in(worker, make):
    return worker.submit(make).result()


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
