"""The HTTP side of a server: who may ask, what is asked, and the answer when it is there."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Executor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ttrl.data.rows import BadRow, parse_json
from ttrl.serve.answering import Answering
from ttrl.serve.messages import Refused, chunks, completion, read_chat, row_of
from ttrl.settings import Settings
from ttrl.stream.inbox import NotJson, QueueFull, TakenId
from ttrl.stream.stream import Stopped

DIGITS = 18
"""Digits of a question's number, at most."""
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "[::1]"}
"""What a browser may call a server that only this machine reaches: a page of somebody else's, whose
name was made to mean this machine, calls it otherwise."""
KEEP_ALIVE_S = 10.0
"""Seconds between two signs of life of a stream."""


class App:
    """Answers requests in an event loop; questions are accepted in one thread beside it."""

    def __init__(
        self,
        settings: Settings,
        answering: Answering,
        token: str | None,
        accepting: Executor,
        names: Collection[str] = (),
    ) -> None:
        """Take what it needs.

        Args:
            settings: of the run.
            answering: accepts and answers questions.
            token: what a request must bring; None: nothing, from this machine.
            accepting: one thread.
            names: what it may be called besides `LOOPBACK_NAMES`, where no token is needed.
        """
        self.settings, self._answering, self._token = settings, answering, token
        self._accepting, self._names = accepting, LOOPBACK_NAMES | set(names)
        self._waiting: dict[int, list[asyncio.Future[tuple[dict[str, Any], float]]]] = {}
        self._stopped = asyncio.Event()
        routes = [
            Route("/health", self._open(self.health)),
            Route("/v1/status", self._guarded(self.status)),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/questions", self._guarded(self.ask), methods=["POST"]),
            Route("/v1/questions/{number}", self._guarded(self.find)),
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
        ]
        handlers: Any = {HTTPException: _not_found, Exception: _failed}
        self.asgi = Starlette(routes=routes, exception_handlers=handlers)

    # --- Called in the event loop by whoever runs it

    def answered(self, record: dict[str, Any], held_s: float) -> None:
        """Hand an answer to those who wait for it."""
        for future in self._waiting.pop(record["number"], []):
            if not future.done():
                future.set_result((record, held_s))

    def stop(self) -> None:
        """Tell all who wait that the server stops."""
        self._stopped.set()

    # --- Who may ask

    def _open(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            try:
                response: Response = await handler(request)
                return response
            except Refused as refused:
                headers = {"Retry-After": "1"} if refused.status in (429, 503) else {}
                if refused.status == 401:
                    headers["WWW-Authenticate"] = "Bearer"
                return JSONResponse(refused.as_json(), refused.status, headers)
            except ClientDisconnect:
                return Response(status_code=400)

        return handle

    def _guarded(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            self._refuse_strangers(request)
            response: Response = await handler(request)
            return response

        return self._open(handle)

    def _refuse_strangers(self, request: Request) -> None:
        if self._token is None:
            name = request.headers.get("host", "").lower()
            name = name if name.endswith("]") else name.rpartition(":")[0] or name
            if name not in self._names:
                raise Refused(403, f"host {name[:100]!r}: expected one of {sorted(self._names)}")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self._token.encode())
        if scheme.lower() != "bearer" or not is_right:
            what = "expected the header Authorization: Bearer TOKEN, with the server's TTRL_TOKEN"
            raise Refused(401, what, code="invalid_api_key")

    # --- What is asked

    async def health(self, request: Request) -> Response:
        """Say that the server answers."""
        return JSONResponse({"status": "ok"})

    async def status(self, request: Request) -> Response:
        """Say how the server stands."""
        return JSONResponse({"model": self.settings.name, **self._answering.figures()})

    async def models(self, request: Request) -> Response:
        """List the model, as the OpenAI API does."""
        model = {"id": self.settings.name, "object": "model", "created": 0, "owned_by": "ttrl"}
        return JSONResponse({"object": "list", "data": [model]})

    async def ask(self, request: Request) -> Response:
        """Accept a row, and answer it; with ``?wait=false`` say its number only."""
        wait = request.query_params.get("wait", "true")
        if wait not in ("true", "false"):
            raise Refused(400, f"wait = {wait[:100]!r}: expected true or false", "wait")
        number = await self._accept(await self._body(request))
        if wait == "false" and self._answering.answer(number) is None:
            return JSONResponse(_pending(number), 202)
        record, held_s = await self._record(number, request)
        return JSONResponse(record | {"held_s": held_s})

    async def find(self, request: Request) -> Response:
        """Return the answer to a question, or say that it has none yet."""
        said: str = request.path_params["number"]
        if not (said.isascii() and said.isdecimal() and len(said) <= DIGITS):
            raise Refused(404, f"question {said[:100]!r}: expected a number", "number")
        number = int(said)
        if (record := self._answering.answer(number)) is not None:
            return JSONResponse(record)
        if not self._answering.has(number):
            raise Refused(404, f"question {number}: there is none", "number")
        return JSONResponse(_pending(number), 202)

    async def chat(self, request: Request) -> Response:
        """Answer the last message of a conversation with what most samples say."""
        asked = read_chat(_parsed(await self._body(request)), self.settings)
        name = _key(request)
        number = await self._accept(row_of(asked, name, self.settings))
        if not asked.stream:
            record, held_s = await self._record(number, request)
            return JSONResponse(completion(record | {"held_s": held_s}, asked.model))

        async def events() -> AsyncIterator[str]:
            waiting = asyncio.ensure_future(self._record(number))
            try:
                while not (await asyncio.wait([waiting], timeout=KEEP_ALIVE_S))[0]:
                    yield ": waiting for the votes\n\n"
            finally:  # a client that has gone
                waiting.cancel()
            try:
                record, held_s = waiting.result()
            except Refused as refused:
                yield f"data: {json.dumps(refused.as_json())}\n\n"
                return
            for chunk in chunks(record | {"held_s": held_s}, asked):
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _record(
        self, number: int, request: Request | None = None
    ) -> tuple[dict[str, Any], float]:
        """Wait for the answer to a question; return it, and how long learning has held it up.

        Args:
            number: the question's.
            request: whose client may go; None: somebody else looks after that.

        Raises:
            Refused: if there is none in time, or the server stops.
            ClientDisconnect: if the client has gone.
        """
        future: asyncio.Future[tuple[dict[str, Any], float]] = asyncio.Future()
        self._waiting.setdefault(number, []).append(future)
        # Only now: an answer that is given between the two reaches the future.
        if (record := self._answering.answer(number)) is not None:
            self.answered(record, 0.0)
        stopping = asyncio.ensure_future(self._stopped.wait())
        limit, first = self.settings.serve.wait_s, asyncio.FIRST_COMPLETED
        any_of: list[asyncio.Future[Any]] = [future, stopping]
        if request is not None:
            any_of.append(asyncio.ensure_future(_gone(request)))
        try:
            await asyncio.wait(any_of, timeout=limit, return_when=first)
            has_gone = request is not None and any_of[-1].done()
        finally:
            for task in any_of[1:]:
                task.cancel()
            self._forget(number, future)
        if future.done():
            return future.result()
        if has_gone:
            raise ClientDisconnect
        where = f"question {number} is kept: its answer will be at /v1/questions/{number}"
        if self._stopped.is_set():
            raise Refused(503, f"the server stops; {where} when it runs again")
        raise Refused(504, f"no answer within serve.wait_s = {limit:g} seconds; {where}")

    def _forget(self, number: int, future: asyncio.Future[tuple[dict[str, Any], float]]) -> None:
        """Stop waiting: a client that has gone must not be kept."""
        others = self._waiting.get(number, [])
        if future in others:
            others.remove(future)
        if not others:
            self._waiting.pop(number, None)

    async def _accept(self, row: bytes) -> int:
        try:
            loop = asyncio.get_running_loop()
            number, _ = await loop.run_in_executor(self._accepting, self._answering.accept, row)
        except TakenId as error:
            raise Refused(409, str(error), self.settings.data.id_field) from error
        except NotJson as error:
            raise _no_json(error.__cause__ or error) from error
        except BadRow as error:
            raise Refused(400, str(error)) from error
        except QueueFull as error:
            waiting = self.settings.stream.queue
            raise Refused(429, f"stream.queue = {waiting} questions wait: ask later") from error
        except Stopped as error:
            raise Refused(503, "the server stops") from error
        except OSError as error:  # a full disk: what is not kept is not accepted
            raise Refused(503, f"the question could not be kept: {error.strerror}") from error
        return number

    async def _body(self, request: Request) -> bytes:
        """Read a request's body, of JSON: not more than a question may have, and not for ever."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a page of somebody else's cannot send unasked
            raise Refused(415, f"content-type = {kind[:100]!r}: expected application/json")
        limit = self.settings.serve.body_s
        reading = asyncio.ensure_future(_read(request, self.settings.serve.body_kib))
        stopping = asyncio.ensure_future(self._stopped.wait())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait([reading, stopping], timeout=limit, return_when=first)
            if reading.done():
                return reading.result()
        finally:
            reading.cancel()
            stopping.cancel()
        if self._stopped.is_set():
            raise Refused(503, "the server stops")
        raise Refused(408, f"no whole body within serve.body_s = {limit:g} seconds")


async def _read(request: Request, limit_kib: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > 1024 * limit_kib:
            raise Refused(413, f"expected at most serve.body_kib = {limit_kib} KiB")
        parts.append(part)
    return b"".join(parts)


def _key(request: Request) -> str | None:
    """Return the name of a question that a client may send again; None: it has given none."""
    name = "Idempotency-Key"
    if (given := request.headers.get(name)) is None:
        return None
    try:
        key = given.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"{name} is not UTF-8", name) from error
    if not key:  # it would be another question each time
        raise Refused(400, f"{name} is empty: name the question, or leave the header out", name)
    return key


def _parsed(body: bytes) -> Any:
    try:
        return parse_json(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _no_json(error) from error


def _no_json(error: BaseException) -> Refused:
    return Refused(400, f"the body is no JSON: {error}")


def _pending(number: int) -> dict[str, Any]:
    return {"number": number, "answer": None, "pending": True}


async def _gone(request: Request) -> None:
    """Wait until a client whose request has been read closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _failed(request: Request, error: Exception) -> Response:
    """Say in the API's own form that something of ours is wrong; the log says what."""
    return JSONResponse(Refused(500, "an error of the server: its log says which").as_json(), 500)


async def _not_found(request: Request, error: Exception) -> Response:
    """Say in the API's own form that there is no such address, or not with that method."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return JSONResponse(Refused(error.status_code, what).as_json(), error.status_code)
