"""What the trainer and an engine process say to each other: lines of JSON over a socket pair.

The two ends are made together and one is handed to the process when it starts. There is no port
and no file, so nobody else can connect, and there is nothing to authenticate. Nothing is pickled:
whatever comes out of a line is numbers and text.
"""

from __future__ import annotations

import json
import socket
import threading
from array import array
from collections.abc import Sequence
from typing import Any

from ttrl.types import Completion, FinishReason, Question
from ttrl.types.top_logprobs import TopLogprobs

Message = dict[str, Any]


class Wire:
    """One end of the socket pair; several threads may send, one may read."""

    def __init__(self, end: socket.socket) -> None:
        """Take over a socket; its timeout is that of `send` and `read`."""
        self._socket = end
        self._lock = threading.Lock()
        self._unread: list[bytes] = []

    def fileno(self) -> int:
        """Return the socket's file descriptor, for polling."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            OSError: if the other end is gone, or (TimeoutError) does not read; then this end is
                of no further use.
        """
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            self._socket.sendall(line)

    def read(self) -> list[Message]:
        """Wait for bytes; return the messages that they complete, which may be none.

        Raises:
            EOFError: if the other end is gone.
        """
        try:
            received = self._socket.recv(2**20)
        except ConnectionError as error:
            raise EOFError from error
        if not received:
            raise EOFError
        head, *more = received.split(b"\n")
        self._unread.append(head)
        messages = []
        for part in more:
            messages.append(json.loads(b"".join(self._unread)))
            self._unread = [part]
        return messages

    def close(self) -> None:
        """Close this end; the other one reads to the end of what was sent, and then EOFError."""
        self._socket.close()


def from_question(question: Question) -> list[Any]:
    """Convert a question to JSON."""
    return [question.id, question.prompt, question.prompt_ids]


def to_question(values: Sequence[Any]) -> Question:
    """Make a question from JSON."""
    id, prompt, prompt_ids = values
    return Question(id, prompt, tuple(prompt_ids))


def from_completion(completion: Completion) -> list[Any]:
    """Convert a completion to JSON; its log-probs come out the same to the last bit."""
    c, top = completion, completion.top_logprobs
    likeliest = top and [list(top.counts), list(top.ids), list(top.logprobs), top.whole]
    return [c.token_ids, c.logprobs, c.text, c.finish_reason, c.temperature, likeliest]


def to_completion(values: Sequence[Any]) -> Completion:
    """Make a completion from JSON."""
    token_ids, logprobs, text, reason, temperature, likeliest = values
    top = None
    if likeliest is not None:
        counts, ids, top_logprobs, whole = likeliest
        top = TopLogprobs(array("H", counts), array("i", ids), array("f", top_logprobs), whole)
    return Completion(
        tuple(token_ids), tuple(logprobs), text, FinishReason(reason), temperature, top
    )
