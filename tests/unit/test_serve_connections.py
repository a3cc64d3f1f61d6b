"""Connections that ask nothing keep nobody out, and no port is open without a token."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ttrl.types import UserError

pytest.importorskip("uvicorn", reason="pip install 'ttrl[serve]'")
import uvicorn
from test_serve_app import TOKEN, settings

from ttrl.serve.service import Service, refuse_open_port

LIMIT = 5


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"yes"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    from ttrl.serve import service

    monkeypatch.setattr(service, "HEAD_S", 0.5)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=service.Protocol, lifespan="off", limit_concurrency=LIMIT, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=[[listening]])
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(30)


def connect(port: int, said: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(said)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it, within 30 s."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def answer(port: int) -> bytes:
    asking = connect(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    found = b""
    while piece := asking.recv(4096):
        found += piece
    return found


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_that_asks_nothing_is_closed(port: int, said: bytes) -> None:
    assert is_closed(connect(port, said))


def test_many_of_them_keep_nobody_out_for_long(port: int) -> None:
    idle = [connect(port) for _ in range(40)]
    assert all(map(is_closed, idle))
    assert b"200 OK" in answer(port)


def test_half_a_head_behind_a_whole_request_is_closed(port: int) -> None:
    connection = connect(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.sendall(b"GET / HT")
    while connection.recv(4096):  # until it is closed
        pass


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((256, 4096), (1280, 4096)),
        ((256, resource.RLIM_INFINITY), (1280, resource.RLIM_INFINITY)),
        ((1280, 1280), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_connections_leave_files_for_the_run(
    limits: tuple[int, int], raised: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ttrl.serve.service import refuse_few_files

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda what, new: asked.append(new))
    refuse_few_files(1024)
    assert asked == ([] if raised is None else [raised])
    if limits[1] == 4096:
        with pytest.raises(UserError, match=r"connections = 3841 needs 4097 open files.*have 4096"):
            refuse_few_files(3841)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "server.example"])
@pytest.mark.parametrize("token", [None, "short"])
def test_no_port_is_open_without_a_token(host: str, token: str | None) -> None:
    with pytest.raises(UserError, match="set TTRL_TOKEN"):
        refuse_open_port(host, token)


def test_ports_that_may_be_open() -> None:
    refuse_open_port("0.0.0.0", TOKEN)
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        refuse_open_port(host, None)
        refuse_open_port(host, TOKEN)
        for token in ("", "with space", "line end\n", "ä" * 20):
            with pytest.raises(UserError, match="TTRL_TOKEN is empty, or holds"):
                refuse_open_port(host, token)


def test_a_port_that_is_taken() -> None:
    first = Service(settings(), "127.0.0.1", 0, None)
    with pytest.raises(UserError, match=f"--port {first.port}: .*in use"):
        Service(settings(), "127.0.0.1", first.port, None)
    assert not first.stop()  # it does not serve yet: Ctrl-C ends the program
    first._socket.close()
