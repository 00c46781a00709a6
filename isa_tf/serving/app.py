"""The addresses of the server: an ASGI application over models, wherever these run."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from absl import logging

from isa_tf.names import unknown
from isa_tf.serving.limits import Limits, Refused
from isa_tf.serving.service import Answer, Options, Service

if TYPE_CHECKING:  # it is an extra
    from starlette.applications import Starlette
    from starlette.requests import Request

_MOST_PARTS = 4  # of a multipart body


class Backend(Protocol):
    """What stands for a model, wherever it runs."""

    async def answer(self, contents: bytes, options: Options) -> Answer:
        """The `Answer` to a picture; raises `Refused`."""

    async def card(self) -> dict[str, Any]:
        """What there is to know of the model."""


class Local:
    """A `Service` of this process as the application asks for one."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def answer(self, contents: bytes, options: Options) -> Answer:
        """The `Answer` to a picture; raises `Refused`."""
        return await asyncio.to_thread(self.service.answer, contents, options)

    async def card(self) -> dict[str, Any]:
        """What there is to know of the model, a dict."""
        return self.service.card()


class Door:
    """What requests come in by: it counts those inside, and can be closed.

    >>> door = Door()
    >>> asyncio.run(door.close(seconds=1))
    True
    """

    def __init__(self) -> None:
        self.is_closed, self.inside = False, 0

    def __enter__(self) -> None:
        if self.is_closed:
            raise Refused(503, "the server ends: ask another one, or later")
        self.inside += 1

    def __exit__(self, *_: object) -> None:
        self.inside -= 1

    async def close(self, seconds: float) -> bool:
        """Lets nothing more in, and waits for what is inside; whether all of it came out."""
        self.is_closed = True
        end = time.monotonic() + seconds
        while self.inside and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return not self.inside


def make_app(
    models: Mapping[str, Mapping[str, Backend]],
    limits: Limits | None = None,
    metrics: Callable[[], Awaitable[str]] | None = None,
    door: Door | None = None,
) -> "Starlette":
    """The ASGI application of a server of models.

    * `GET /healthz`: 200 where every model answers, else 503
    * `GET /metrics`: in Prometheus' format
    * `GET /v1/models`, `/v1/models/NAME`, `/v1/models/NAME/versions/VERSION`: what there is to know
    * `POST /v1/models/NAME/predict`, `/v1/models/NAME/versions/VERSION/predict`: the bytes of a
      picture, or a form (multipart) with one file; parameters as `Options` has them

    Whatever is not answered is JSON: {"status", "error"}, the latter a reason in words. A name
    without a version stands for the last one: the largest, by the numbers in it.

    Args:
        models: mapping of names to mappings of versions, str, to what has `answer` and `card` as
            `isa_tf.serving.app.Local` does.
        limits: `Limits` of bodies and time; `None` for its defaults. Defaults to `None`.
        metrics: coroutine function that gives the text of `/metrics`; `None` for no such address.
            Defaults to `None`.
        door: `Door`, by which requests for predictions come in; `None` for one of its own.
            Defaults to `None`.

    Returns:
        `starlette.applications.Starlette`.

    Raises:
        ImportError: where Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse, PlainTextResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(
            "a server needs Starlette, which is not installed: pip install isa_tf[serve]"
        ) from error

    limits, door = limits or Limits(), door or Door()

    def refusal(status, reason):
        headers = {"Retry-After": "1"} if status == 503 else None
        if status in (408, 413):  # what is left of the body is not waited for
            headers = {"Connection": "close"}
        return JSONResponse({"status": status, "error": reason}, status, headers)

    def of_path(request):
        name, version = (request.path_params.get(key) for key in ("name", "version"))
        if name not in models:
            raise Refused(404, unknown("model", name, [*models]))
        versions = models[name]
        version = last_version(versions) if version is None else version
        if version not in versions:
            raise Refused(404, unknown(f"version of {name}", version, [*versions]))
        return name, version, versions[version]

    async def card_of(name, version):
        card = await models[name][version].card()
        return {"name": name, "version": version, "versions": [*models[name]], **card}

    async def in_time(awaitable, what):
        try:
            return await asyncio.wait_for(awaitable, limits.answer_seconds)
        except TimeoutError:
            raise Refused(504, f"{what} took more than {limits.answer_seconds:g} s") from None

    async def health(request):
        with door:
            pass
        backends = [each for versions in models.values() for each in versions.values()]
        await in_time(asyncio.gather(*(each.card() for each in backends)), "the models")
        return JSONResponse({"status": "ok"})

    async def measures(request):
        if metrics is None:
            raise Refused(404, "no metrics here")
        return PlainTextResponse(await metrics(), media_type="text/plain; version=0.0.4")

    async def index(request):
        cards = [card_of(name, last_version(models[name])) for name in models]
        return JSONResponse({"models": await in_time(asyncio.gather(*cards), "the models")})

    async def card(request):
        name, version, _ = of_path(request)
        return JSONResponse(await in_time(card_of(name, version), "the model"))

    async def predict(request):
        with door:
            name, version, backend = of_path(request)
            options = Options.of(request.query_params, request.headers.get("accept", ""))
            contents = await picture_of(request, await body_of(request, limits))
            answer = await in_time(backend.answer(contents, options), "the answer")
        headers = {"X-Model": f"{name}/{version}"}
        return Response(answer.body, media_type=answer.media_type, headers=headers)

    def answered(handler):
        async def answer(request):
            try:
                return await handler(request)
            except Refused as error:
                return refusal(error.status, error.reason)
            except ClientDisconnect:
                return refusal(400, "the client went")
            except HTTPException:
                raise
            except Exception:
                logging.exception("%s %s", request.method, request.url.path)
                return refusal(500, "an error of the server's own, which its log tells")

        return answer

    async def other(request, error):
        return refusal(error.status_code, error.detail)

    one, version = "/v1/models/{name}", "/versions/{version}"
    routes = [
        Route("/healthz", answered(health)),
        Route("/metrics", answered(measures)),
        Route("/v1/models", answered(index)),
        Route(one, answered(card)),
        Route(one + version, answered(card)),
        Route(f"{one}/predict", answered(predict), methods=["POST"]),
        Route(f"{one}{version}/predict", answered(predict), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: other})


def last_version(versions: Iterable[str]) -> str:
    """The largest of versions, by the numbers in them: "10" is later than "9", "v2" than "v1".

    >>> last_version(["9", "10"])
    '10'
    """

    def order(version):
        parts = re.split(r"(\d+)", version)
        return [(part.isdigit(), int(part) if part.isdigit() else part) for part in parts]

    return max(versions, key=order)


async def body_of(request: "Request", limits: Limits) -> bytes:
    """The body of a request, bytes; `Refused` for one that is too long, in bytes or in seconds."""
    too_long = Refused(413, f"a body of more than the {limits.max_bytes} bytes that are taken")
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > limits.max_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.max_bytes:
                    raise too_long
    except TimeoutError:
        raise Refused(
            408, f"the body had not come within {limits.body_seconds:g} s: {len(body)} bytes had"
        ) from None
    return bytes(body)


async def picture_of(request: "Request", body: bytes) -> bytes:
    """The bytes of the picture in a body: the body itself, or the file of a form."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        _refuse_json(body)
    if media_type != "multipart/form-data":
        return body
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def parts():
        yield body

    parser = MultiPartParser(request.headers, parts(), max_files=1, max_fields=_MOST_PARTS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, f"a form that cannot be read: {error.message}") from error
    except Exception as error:
        raise Refused(400, f"a form that cannot be read ({error})") from error
    try:
        found = [value for _, value in form.multi_items() if not isinstance(value, str)]
        if not found:
            raise Refused(400, "a form without a file: send one, as curl -F image=@photo.jpg does")
        return await found[0].read()
    finally:
        await form.close()


def _refuse_json(body):
    try:
        json.loads(body)
    except ValueError as error:
        raise Refused(400, f"no JSON ({error}), and none is taken: send a picture") from None
    raise Refused(415, "JSON is not taken: send the bytes of a picture, or a form with a file")
