"""A server: its address, its thread, and what ties it to the trainer."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ttrl.run.rollout_phase import RolloutPhase
from ttrl.run.rollouts import Rollouts
from ttrl.serve.answering import Answering
from ttrl.serve.app import App
from ttrl.settings import Settings
from ttrl.stream.phase import StreamPhase
from ttrl.types import UserError

HEAD_S = 10.0
"""Seconds in which a connection must have asked something."""
OTHER_FILES = 256
"""Files that a process needs besides its connections, at most."""
SHORTEST_TOKEN = 16
"""Characters of a token beyond this machine, at least."""
TOKEN = re.compile(r"[!-~]+")
"""What a token may be."""
STOP_S = 5
"""Seconds that requests have to end when the server stops."""


class Protocol(H11Protocol):
    """Closes connections that ask nothing, and those that are too many.

    uvicorn itself refuses requests where there are too many connections, and keeps these.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection, or close it at once."""
        super().connection_made(transport)
        self._close_later()
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what has come; the head of a request must be whole in time."""
        super().data_received(data)
        if self._asks_nothing():
            self._close_later()

    def _close_later(self) -> None:
        self.loop.call_later(HEAD_S, self._close)

    def _close(self) -> None:
        if self._asks_nothing():
            self.transport.close()

    def _asks_nothing(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class Service:
    """Listens at an address, and serves while a trainer runs."""

    def __init__(self, settings: Settings, host: str, port: int, token: str | None) -> None:
        """Take the address: what comes now waits until `make` and ``running`` answer it.

        Raises:
            UserError: if the address cannot be had, or is reached from elsewhere, without a token.
        """
        refuse_open_port(host, token)
        refuse_few_files(settings.serve.connections)
        self.host = host
        self.settings, self.token = settings, token
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except (OSError, OverflowError) as error:
            raise UserError(f"--host {host} --port {port}: {error}") from error
        self.port: int = self._socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}"
        self._answering: Answering | None = None  # while it serves, and was not stopped

    def make(
        self,
        phase: RolloutPhase,
        stream: StreamPhase,
        limited: Callable[[str], AbstractContextManager[None]],
    ) -> Rollouts:
        """Make what answers, for a trainer (`ttrl.trainer.MakeRollouts`)."""
        self._note = stream.display.note
        return Answering(self.settings, phase, stream, lambda: limited("rollout"), self._serving)

    def stop(self) -> bool:
        """End the service when the present update is made; return whether there was one to end."""
        if (answering := self._answering) is None:
            return False
        self._answering = None
        answering.stop()
        return True

    @contextmanager
    def _serving(self, answering: Answering) -> Iterator[None]:
        """Answer requests inside this context, in a thread of its own."""
        with ThreadPoolExecutor(1, thread_name_prefix="accepting") as accepting:
            names = (self.host, f"[{self.host}]")
            app = App(self.settings, answering, self.token, accepting, names)
            config = uvicorn.Config(
                app.asgi,
                http=Protocol,
                log_level="warning",
                lifespan="off",
                server_header=False,
                limit_concurrency=self.settings.serve.connections,
                timeout_graceful_shutdown=STOP_S,
                ws="none",
            )
            server, loop = uvicorn.Server(config), asyncio.new_event_loop()
            work = server.serve(sockets=[self._socket])

            def run() -> None:
                try:
                    loop.run_until_complete(work)
                except BaseException as error:  # the trainer raises it
                    answering.fail(error)

            thread = threading.Thread(target=run, name="http", daemon=True)

            def on_answer(record: dict[str, Any], held_s: float) -> None:
                with suppress(RuntimeError):  # the loop has ended: it is in the file
                    loop.call_soon_threadsafe(app.answered, record, held_s)

            answering.on_answer = on_answer
            thread.start()
            self._answering = answering
            self._note(f"serving at {self.url}; Ctrl-C ends it")
            try:
                yield
            finally:
                self._answering = None
                server.should_exit = True
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(app.stop)
                thread.join()
                loop.close()


def refuse_open_port(host: str, token: str | None) -> None:
    """Raise a UserError for an address that others reach, without a token to keep them out."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            host = "localhost"
    if token is not None and not TOKEN.fullmatch(token):
        raise UserError(
            "TTRL_TOKEN is empty, or holds what no header can: expected visible ASCII characters "
            "without spaces or line ends; set such a one, or unset it"
        )
    if host == "localhost":
        return
    if token is None or len(token) < SHORTEST_TOKEN:
        raise UserError(
            f"--host {host} is reached from other machines: set TTRL_TOKEN in the environment to a "
            f"token of {SHORTEST_TOKEN} characters or more, which requests must bring, for example "
            "one that `openssl rand -hex 32` makes"
        )


def refuse_few_files(connections: int) -> None:
    """Raise a UserError if so many connections leave no file for a run; the limit is raised first.

    Whoever opens connections would else end the run.
    """
    needed = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"serve.connections = {connections} needs {needed} open files, and this process may "
            f"have {hard}: lower it, or raise the limit (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
