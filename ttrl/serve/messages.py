"""Requests and responses of the OpenAI API's chat completions, as far as votes can answer them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ttrl.data.messages import joined
from ttrl.settings import Settings


class Refused(Exception):
    """Says why a request cannot be answered; ``param`` names the part that is wrong."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        """Say why, as an HTTP status, and in words."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def as_json(self) -> dict[str, Any]:
        """Return the error as the OpenAI API writes one."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class ChatRequest(BaseModel):
    """A request for a chat completion; what it may say of sampling is what the recipe says."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None


IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
IGNORED |= {"parallel_tool_calls"}  # there are no tools
"""What may be said, and says nothing about an answer."""


def read_chat(value: Any, settings: Settings) -> ChatRequest:
    """Check a request for a chat completion.

    Raises:
        Refused: if it is none, names another model, or asks for an answer that votes cannot give.
    """
    try:
        request = ChatRequest.model_validate(value)
    except ValueError as error:
        first = error.errors()[0] if hasattr(error, "errors") else {}
        where = ".".join(map(str, first.get("loc", ()))) or None
        what = f"{where or 'the body'}: {first.get('msg', error)}"
        raise Refused(400, what, where) from error
    if request.model != settings.name:
        what = (
            f"model = {request.model[:100]!r}: expected {settings.name!r}, the one that is served"
        )
        raise Refused(404, what, "model", "model_not_found")
    rollout = settings.rollout
    fixed = {
        "n": 1,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logprobs": False,
        "logit_bias": {},
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "modalities": ["text"],
    }
    for name, given in (request.model_extra or {}).items():
        if name in ("max_tokens", "max_completion_tokens"):
            if isinstance(given, int) and given >= rollout.max_new_tokens:
                continue
            expected = f"rollout.max_new_tokens = {rollout.max_new_tokens} or more"
        elif given is None or name in IGNORED or (name in fixed and given == fixed[name]):
            continue
        else:
            expected = json.dumps(fixed[name]) if name in fixed else "nothing"
        raise Refused(
            400,
            f"{name[:100]} = {repr(given)[:100]}: an answer is what many samples vote for, all "
            f"sampled as the server was told: expected {expected}; leave it out",
            name[:100],
        )
    return request


def row_of(request: ChatRequest, name: str | None, settings: Settings) -> bytes:
    """Write a conversation as the row of a question; its ``name``, if there is one, is the id."""
    data, messages = settings.data, request.messages
    question: Any = messages
    first = messages[0]
    text = joined(first.get("content"))
    if len(messages) == 1 and first.get("role") == "user" and isinstance(text, str):
        question = text  # asked as a file's text is: with suffix and system prompt
    row = {data.prompt_field: question} | ({} if name is None else {data.id_field: name})
    return json.dumps(row).encode()


def completion(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Make a chat completion of the answer to a question; see `answer_record`."""
    return {
        "id": f"chatcmpl-{record['number']}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": record["response"]},
                "finish_reason": record["finish_reason"],
            }
        ],
        "usage": _usage(record),
        "ttrl": votes_of(record),
    }


def chunks(record: dict[str, Any], request: ChatRequest) -> Iterator[dict[str, Any]]:
    """Yield a chat completion as the chunks of a stream: all of the answer is there at once."""
    whole = completion(record, request.model)
    head = {"id": whole["id"], "object": "chat.completion.chunk", "created": whole["created"]}
    head |= {"model": request.model}
    choice = whole["choices"][0]
    yield head | {"choices": [{"index": 0, "delta": choice["message"], "finish_reason": None}]}
    end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    yield head | {"choices": [end], "ttrl": whole["ttrl"]}
    if (request.stream_options or {}).get("include_usage"):
        yield head | {"choices": [], "usage": whole["usage"]}


def votes_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the votes say, without the text of an answer."""
    return {key: value for key, value in record.items() if key not in ("response", "first")}


def _usage(record: dict[str, Any]) -> dict[str, int]:
    read, written = record["prompt_tokens"], record["response_tokens"]
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
