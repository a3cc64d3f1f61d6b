"""What a server says to whom: answers, errors, and nothing to strangers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import tiny_tokenizer

pytest.importorskip("starlette", reason="pip install 'ttrl[serve]'")
from starlette.requests import Request
from starlette.testclient import TestClient

from ttrl.commands.serve import SERVED
from ttrl.serve.app import App, _key
from ttrl.serve.messages import Refused
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.stream.stream import Stream

TOKEN = "0123456789abcdef-token"
JSON = {"content-type": "application/json"}


def settings(*more: str) -> Settings:
    return load_settings("tiny-stream", overrides=[*SERVED, *more])


class Oracle:
    """Answers as the `Answering` of a run, each question with its own text, when it is told to."""

    def __init__(self, of: Settings, folder: Path) -> None:
        from ttrl.data.questions import QuestionReader

        reader = QuestionReader(of.data, tiny_tokenizer())
        self.stream = Stream(of, folder, lambda: reader.read)
        self.app: App | None = None
        self.loop: Any = None
        self.answers_at_once = True

    def accept(self, row: bytes) -> tuple[int, bool]:
        number, is_new = self.stream.accept(row, lambda number: None)
        if is_new and self.answers_at_once:
            self.answer_all()
        return number, is_new

    def answer_all(self) -> None:
        for number in range(self.stream.answers.last + 1, self.stream.accepted + 1):
            self.stream.answer([answer_to(number)], adapted=False)

    def has(self, number: int) -> bool:
        return 0 < number <= self.stream.accepted

    def answer(self, number: int) -> dict[str, Any] | None:
        return self.stream.answers.find(number)

    def figures(self) -> dict[str, float]:
        return {"answered": self.stream.answers.last}


def answer_to(number: int) -> dict[str, Any]:
    return {
        "number": number, "id": f"stream-{number}", "step": 1, "updates": 3, "answer": "132",
        "share": 0.75, "votes": 64, "first": "7", "response": r"so \boxed{132}",
        "finish_reason": "stop", "prompt_tokens": 25, "response_tokens": 9, "tokens": 640,
    }  # fmt: skip


class Server:
    """A client, and what is behind the server."""

    def __init__(self, folder: Path, token: str | None, *more: str) -> None:
        self.settings = settings(*more)
        self.oracle = Oracle(self.settings, folder)
        self.threads = ThreadPoolExecutor(1)
        self.app = App(self.settings, self.oracle, token, self.threads)  # type: ignore[arg-type]
        self.client = TestClient(self.app.asgi, base_url="http://127.0.0.1:8000")

    def post(self, path: str, body: Any, **headers: str | bytes) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers={**JSON, **headers})

    def chat(self, **more: Any) -> Any:
        said = {"model": "tiny-stream", "messages": [{"role": "user", "content": "What is 1 + 2?"}]}
        return self.post("/v1/chat/completions", said | more)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, None, "serve.wait_s=0.2")
    with made.client:
        yield made
    made.threads.shutdown()


def test_a_question_is_answered(server: Server) -> None:
    response = server.post("/v1/questions", {"prompt": "What is 47 + 85?"})
    assert response.status_code == 200
    assert response.json() == answer_to(1) | {"held_s": 0.0}
    assert server.client.get("/v1/questions/1").json() == answer_to(1)
    assert server.client.get("/v1/status").json() == {"model": "tiny-stream", "answered": 1}
    assert server.client.get("/v1/models").json()["data"][0]["id"] == "tiny-stream"


def test_a_row_on_several_lines_with_an_id_is_one_question(server: Server) -> None:
    body = b'{\n "id": "a",\r\n "prompt": "What is 1 + 2?"\n}'
    assert [server.post("/v1/questions", body).json()["number"] for _ in range(2)] == [1, 1]
    again = server.post("/v1/questions", {"prompt": "What is 1 + 2?", "id": "a"})
    assert again.json()["number"] == 1  # the same row, written in another way
    other = server.post("/v1/questions", {"prompt": "What is 1 + 3?", "id": "a"})
    assert other.status_code == 409
    kept = server.oracle.stream._inbox._accepted.path.read_bytes()
    assert (kept.count(b"\n"), kept.count(b"\r")) == (1, 0)
    assert "the id 'a' is that of another question, number 1" in other.json()["error"]["message"]
    assert server.oracle.stream.accepted == 1


def test_an_id_that_looks_like_ours_is_an_id(server: Server) -> None:
    named = {"prompt": "What is 1 + 2?", "id": "stream-2"}
    numbers = [server.post("/v1/questions", named).json()["number"] for _ in range(3)]
    assert numbers == [1, 1, 1]
    nameless = {"prompt": "What is 1 + 2?"}
    assert [server.post("/v1/questions", nameless).json()["number"] for _ in range(2)] == [2, 3]
    lines = server.oracle.stream._inbox._accepted.path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["stream-2", "stream-2-2", "stream-3"]


def test_who_does_not_wait_comes_again(server: Server) -> None:
    server.oracle.answers_at_once = False
    pending = {"number": 1, "answer": None, "pending": True}
    response = server.post("/v1/questions?wait=false", {"prompt": "What is 1 + 2?"})
    assert (response.status_code, response.json()) == (202, pending)
    response = server.client.get("/v1/questions/1")
    assert (response.status_code, response.json()) == (202, pending)
    response = server.post("/v1/questions", {"prompt": "What is 1 + 3?"})
    assert response.status_code == 504
    assert "its answer will be at /v1/questions/2" in response.json()["error"]["message"]
    server.oracle.answer_all()
    assert server.client.get("/v1/questions/1").json()["answer"] == "132"
    assert server.client.get("/v1/questions/3").status_code == 404
    assert server.app._waiting == {}  # nobody who has gone is kept


def test_an_answer_reaches_who_waits(tmp_path: Path) -> None:
    server = Server(tmp_path, None)
    server.oracle.answers_at_once = False
    with TestClient(server.app.asgi, base_url="http://127.0.0.1") as client:
        portal = client.portal

        def answer() -> None:
            while server.oracle.stream.accepted < 1:
                time.sleep(0.01)
            assert portal is not None
            portal.call(server.app.answered, answer_to(1), 0.25)

        thread = threading.Thread(target=answer)
        thread.start()
        body = b'{"prompt": "What is 1 + 2?"}'
        found = client.post("/v1/questions", content=body, headers=JSON).json()
        thread.join()
    server.threads.shutdown()
    assert (found["number"], found["held_s"]) == (1, 0.25)


def test_a_server_that_stops_says_where_the_answer_will_be(server: Server) -> None:
    server.oracle.answers_at_once = False
    server.app.stop()
    response = server.post("/v1/questions", {"prompt": "What is 1 + 2?"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "at /v1/questions/1 when it runs again" in response.json()["error"]["message"]
    server.oracle.stream.close()
    response = server.post("/v1/questions", {"prompt": "What is 1 + 4?"})
    assert response.status_code == 503
    assert server.oracle.stream.accepted == 1


def test_half_a_body_does_not_hold_up_a_server_that_stops(server: Server) -> None:
    """Its sender is told at once that nothing more is taken."""

    async def stop_and_read() -> Refused:
        async def receive() -> dict[str, Any]:
            if not server.app._stopped.is_set():
                server.app.stop()
                return {"type": "http.request", "body": b'{"prompt": ', "more_body": True}
            await asyncio.Event().wait()
            raise AssertionError

        head = [(b"content-type", b"application/json")]
        request = Request({"type": "http", "method": "POST", "headers": head}, receive)
        with pytest.raises(Refused) as refused:
            await asyncio.wait_for(server.app._body(request), 20)
        return refused.value

    refused = asyncio.run(stop_and_read())
    assert (refused.status, str(refused)) == (503, "the server stops")
    assert server.oracle.stream.accepted == 0


def test_a_chat_completion(server: Server) -> None:
    found = server.chat(temperature=1.0, n=1, max_tokens=10**6, user="x", top_p=None).json()
    assert found["object"] == "chat.completion"
    choice = found["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": r"so \boxed{132}"}
    assert choice["finish_reason"] == "stop"
    usage = {"prompt_tokens": 25, "completion_tokens": 9, "total_tokens": 34}
    assert found["usage"] == usage
    assert found["ttrl"]["answer"] == "132" and found["ttrl"]["share"] == 0.75
    parts = [{"type": "text", "text": text} for text in ("What is ", "1 + 2?")]
    asked = [{"role": "user", "content": parts, "name": "x"}]
    assert server.chat(messages=asked, logit_bias={}, parallel_tool_calls=True).status_code == 200
    kept = (server.oracle.stream._inbox._accepted.path).read_text()
    assert kept.count('"row": {"prompt": "What is 1 + 2?"}') == 2  # as a file's text would be


def test_a_chat_completion_as_a_stream(server: Server) -> None:
    response = server.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    first, last, usage = map(json.loads, lines[:-1])
    assert first["choices"][0]["delta"]["content"] == r"so \boxed{132}"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["total_tokens"] == 34


def test_a_field_that_is_null_is_left_out(server: Server) -> None:
    found = server.chat(stream=None, stream_options=None, n=None, seed=None)
    assert found.json()["object"] == "chat.completion"


def test_usage_is_told_to_who_asks_for_it(server: Server) -> None:
    for options in (None, {}, {"include_usage": False}):
        text = server.chat(stream=True, stream_options=options).text
        assert [("usage" in line) for line in text.split("\n\n") if line] == [False] * 3


def test_a_conversation_is_kept_with_all_its_messages(server: Server) -> None:
    asked = {"role": "user", "content": "What is 1 + 2?"}
    told = [{"role": "system", "content": "Be brief."}, asked]
    again = [asked, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Sure?"}]
    for messages in (told, again):
        assert server.chat(messages=messages).status_code == 200
    assert server.chat(messages=told[:1]).status_code == 400  # nobody has asked
    lines = server.oracle.stream._inbox._accepted.path.read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [{"prompt": told}, {"prompt": again}]


def test_a_chat_with_a_key_is_one_question(server: Server) -> None:
    said = {"model": "tiny-stream", "messages": [{"role": "user", "content": "What is 1 + 2?"}]}
    keys = {"idempotency-key": "k1"}, {"idempotency-key": "k1"}, {}
    found = [server.post("/v1/chat/completions", said, **key).json()["id"] for key in keys]
    assert found == ["chatcmpl-1", "chatcmpl-1", "chatcmpl-2"]
    named = {"prompt": "What is 1 + 2?", "id": "schlüssel"}
    first = server.post("/v1/questions", named).json()["number"]
    again = server.post("/v1/chat/completions", said, **{"idempotency-key": "schlüssel".encode()})
    assert again.json()["id"] == f"chatcmpl-{first}"  # as it is in a row
    refused = server.post("/v1/chat/completions", said, **{"idempotency-key": ""})
    assert (refused.status_code, "is empty" in refused.text) == (400, True)
    with pytest.raises(Refused, match="is not UTF-8"):
        _key(Request({"type": "http", "headers": [(b"idempotency-key", b"\xfc")]}))


@pytest.mark.parametrize(
    ("more", "status", "param", "words"),
    [
        ({"model": "gpt-4"}, 404, "model", "expected 'tiny-stream'"),
        ({"n": 2}, 400, "n", "expected 1"),
        ({"temperature": 0.2}, 400, "temperature", "expected 1.0"),
        ({"max_tokens": 3}, 400, "max_tokens", "or more"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "expected []"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "leave it out"),
        ({"what is this": 1}, 400, "what is this", "expected nothing"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": "hello"}, 400, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, None, "role 'robot'"),
        ({"stream": "yes"}, 400, "stream", "bool"),
    ],
)
def test_what_votes_cannot_answer_is_refused(
    server: Server, more: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    response = server.chat(**more)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert server.oracle.stream.accepted == 0


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "no JSON"),
        (b'{"prompt": ', 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[" * 500 + b"]" * 500, 400, "inside each other"),
        (b'{"prompt": ""}', 400, "is empty"),
        (b'{"prompt": "\\u0000"}', 400, "NUL"),
        (b'{"prompt": "\\ud800"}', 400, "surrogate"),
        (b'{"prompt": {"a": 1}}', 400, "must be text"),
        (b'{"question": "What?"}', 400, "no field 'prompt'"),
        (b'{"end_of_stream": true}', 400, "no field 'prompt'"),
        (b'{"prompt": "' + b"1" * 5000 + b'"}', 400, "max_prompt_tokens"),
        (b'{"prompt": "' + b"1" * 2**18 + b'"}', 413, "serve.body_kib = 256"),
        (b'{"prompt": "x", "id": "' + b"1" * 257 + b'"}', 400, "at most 256 characters"),
        (b'{"prompt": "x", "id": "\\u001b[31mred"}', 400, "all printable"),
        (b"1" * 5000, 400, "no JSON"),  # more digits than Python reads
    ],
)
def test_a_body_that_is_no_question_is_refused(
    server: Server, body: bytes, status: int, words: str
) -> None:
    response = server.post("/v1/questions", body)
    assert (response.status_code, words in response.json()["error"]["message"]) == (status, True)
    assert server.oracle.stream.accepted == 0
    assert server.post("/v1/questions", {"prompt": "What is 1 + 2?"}).status_code == 200


def test_a_page_of_somebody_else_reaches_nothing(server: Server) -> None:
    body = b'{"prompt": "What is 1 + 2?"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = server.client.post("/v1/questions", content=body, headers={"content-type": kind})
        assert response.status_code == 415
    for name in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]:80"):
        response = server.client.get("/v1/status", headers={"host": name})
        assert response.status_code == 403, name
    for name in ("localhost:80", "LOCALHOST", "[::1]:8000", "[::1]", "127.0.0.1:1"):
        assert server.client.get("/v1/status", headers={"host": name}).status_code == 200, name
    options = server.client.options("/v1/questions", headers={"origin": "http://evil.example"})
    assert options.status_code == 405
    assert "access-control-allow-origin" not in options.headers
    assert server.oracle.stream.accepted == 0


def test_addresses_that_are_not_there(server: Server) -> None:
    assert server.client.get("/v1/questions").status_code == 405
    assert server.client.get("/v1/questions/x").status_code == 404
    for number in ("-1", "9" * 5000, "\uff19", "1.0"):
        assert server.client.get(f"/v1/questions/{number}").status_code == 404
    found = server.client.get("/nothing").json()["error"]["message"]
    assert found == "GET /nothing: Not Found"


def test_a_token_keeps_strangers_out(tmp_path: Path) -> None:
    server = Server(tmp_path, TOKEN)
    body = {"prompt": "What is 1 + 2?"}
    with server.client:
        for given in (None, "", TOKEN, f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer é"):
            headers = {} if given is None else {"authorization": given.encode("latin-1")}
            response = server.client.post("/v1/questions", json=body, headers=headers)  # type: ignore[arg-type]
            assert response.status_code == 401, given
            assert response.headers["www-authenticate"] == "Bearer"
        assert server.oracle.stream.accepted == 0
        assert server.client.get("/v1/status").status_code == 401
        assert server.client.get("/health").json() == {"status": "ok"}
        elsewhere = {"authorization": f"bearer {TOKEN}", "host": "service.example"}
        assert server.post("/v1/questions", body, **elsewhere).status_code == 200
    server.threads.shutdown()


def test_a_full_queue_asks_to_come_later(tmp_path: Path) -> None:
    server = Server(tmp_path, None, "stream.queue=8")
    server.oracle.answers_at_once = False
    with server.client:
        for i in range(8):
            asked = {"prompt": f"What is {i} + 2?", "id": f"q{i}"}
            assert server.post("/v1/questions?wait=false", asked).status_code == 202
        response = server.post("/v1/questions", {"prompt": "What is 9 + 2?"})
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        again = server.post("/v1/questions?wait=false", {"prompt": "What is 3 + 2?", "id": "q3"})
        assert (again.status_code, again.json()["number"]) == (202, 4)  # it has its place
        server.oracle.answer_all()
        assert (
            server.post("/v1/questions?wait=false", {"prompt": "What is 9 + 2?"}).json()["number"]
            == 9
        )
    server.threads.shutdown()
