"""The server on Ray Serve: from one process on a laptop to a cluster.

Ray starts the replicas of models and of the application, sends requests to those that are free,
batches, starts more where many wait, and replaces what dies.
"""

import asyncio
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from absl import logging
from PIL import Image

from isa_tf.formats import load_predictor
from isa_tf.hints import StrPath
from isa_tf.serving.app import Door, make_app
from isa_tf.serving.limits import Limits, Refused
from isa_tf.serving.service import Service

if TYPE_CHECKING:  # it is an extra
    from ray import serve

FRONT = "front"  # the deployment that the application is
_TRIES = 3  # of a request whose replica died
_GRACE = 30.0  # seconds that a replica has to end what it is at


class _Replica:
    """A model in a process of its own."""

    def __init__(self, path, limits, num_threads, batch, wait, plugins=()):
        if num_threads:
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        from ray import serve

        Image.MAX_IMAGE_PIXELS = None  # `Limits` says how many
        for name in plugins:
            importlib.import_module(name)
        self.service = Service(load_predictor(path, num_threads), limits)

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=wait)
        async def predict(images):
            return await asyncio.to_thread(self.service.predict, images)

        self._predict = predict

    async def answer(self, contents, options):
        """(an `Answer`, `None`), or (`None`, `Refused`): Ray would wrap what is raised."""
        try:
            image = await asyncio.to_thread(self.service.read, contents, options)
            result = await self._predict(image)
            if isinstance(result, Exception):
                raise result
            return await asyncio.to_thread(self.service.write, image, result, options), None
        except Refused as error:
            return None, error

    async def card(self):
        return self.service.card()


class _Backend:
    """The replicas of a model as the application asks for them."""

    def __init__(self, handle):
        self.handle = handle

    async def answer(self, contents, options):
        answer, refused = await self._call("answer", contents, options)
        if refused is not None:
            raise refused
        return answer

    async def card(self):
        return await self._call("card")

    async def _call(self, method, *args):
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        for _ in range(_TRIES):
            try:
                return await getattr(self.handle, method).remote(*args)
            except BackPressureError:
                raise Refused(503, "too many requests wait: try again") from None
            except (RayActorError, DeploymentUnavailableError) as error:
                # A prediction changes nothing, so it can be asked for again.
                logging.warning("A replica was lost: %s", str(error).partition("\n")[0])
        raise Refused(503, "the model is not to be reached: try again")


class _Front:
    """The application over handles of the models' replicas."""

    def __init__(self, handles, limits):
        self.models = {
            name: {version: _Backend(handle) for version, handle in versions.items()}
            for name, versions in handles.items()
        }
        self.limits, self.door = limits, Door()

    def __serve_build_asgi_app__(self):
        return make_app(self.models, self.limits, _metrics, self.door)

    async def close(self, seconds):
        """Takes no more requests, and waits for those that are running."""
        return await self.door.close(seconds)


async def _metrics():
    """What Ray measures on this machine, in Prometheus' format."""
    import aiohttp
    import ray

    here = ray.get_runtime_context().get_node_id()
    port = next(n["MetricsExportPort"] for n in ray.nodes() if n["NodeID"] == here)
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return await answer.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Refused(503, f"Ray tells no metrics here ({error})") from error


def application(
    models: Mapping[str, Mapping[str, StrPath]],
    limits: Limits | None = None,
    replicas: Sequence[int] = (1, 1),
    num_threads: int | None = None,
    num_gpus: float = 0,
    batch: int = 1,
    wait: float = 0.0,
    queue: int = 100,
    plugins: Sequence[str] = (),
) -> "serve.Application":
    """The application of Ray Serve that serves models: what `ray.serve.run` takes.

    Args:
        models: mapping of names to mappings of versions, str, to paths of files or folders that
            `isa_tf.load_predictor` reads.
        limits: `Limits`; `None` for its defaults. Defaults to `None`.
        replicas: (least, most) processes of a model, between which Ray chooses. Defaults to
            `(1, 1)`.
        num_threads: int, of a process; `None` for the runtime's own choice. Defaults to `None`.
        num_gpus: float, of a process. Defaults to 0.
        batch: int, how many images of one size a model sees at once, at most. Defaults to 1.
        wait: float, the seconds that an image waits for others. Defaults to 0.
        queue: int, how many requests may wait for a model; more are answered 503. Defaults to 100.
        plugins: names of modules to import first. Defaults to `()`.

    Raises:
        ImportError: where Ray is not installed.

    Library: https://docs.ray.io/en/latest/serve
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError(
            "a server needs Ray Serve, which is not installed: pip install isa_tf[serve]"
        ) from error

    limits = limits or Limits()
    busy = 2 * batch  # one at work, and one that is read or written meanwhile
    least, most = replicas
    resources = {"num_cpus": num_threads or 1, "num_gpus": num_gpus}
    scale: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": busy}
        scale = {"autoscaling_config": scaling}
    handles: dict[str, dict[str, Any]] = {}
    for name, versions in models.items():
        handles[name] = {}
        for version, path in versions.items():
            deployment = serve.deployment(
                _Replica,
                name=f"{name}@{version}",
                max_ongoing_requests=busy,
                max_queued_requests=queue,
                graceful_shutdown_timeout_s=_GRACE,
                ray_actor_options=resources,
                **scale,
            )
            arguments = (str(path), limits, num_threads, batch, wait, tuple(plugins))
            handles[name][version] = deployment.bind(*arguments)
    front = serve.deployment(
        serve.ingress()(_Front),
        name=FRONT,
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=_GRACE,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(handles, limits)
