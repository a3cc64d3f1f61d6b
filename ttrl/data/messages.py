"""A question as a list of messages: a conversation that ends with the user's turn.

TRL and verl call the list ``prompt``, OpenAI ``messages``; each message is ``{"role": ...,
"content": ...}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ttrl.data.rows import BadRow

ROLES = ("system", "developer", "user", "assistant")
SYSTEM = ROLES[:2]

Messages = Sequence[dict[str, str]]


def read_messages(name: str, value: Sequence[Any]) -> Messages:
    """Return the messages up to the user's last one: what stands behind it answers the question.

    Args:
        name: the field's, for the error.
        value: what the field holds.

    Raises:
        BadRow: if it is no conversation of texts, or the user says nothing last.
    """
    messages = [_message(f"field {name!r}, message {i}", m) for i, m in enumerate(value)]
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise BadRow(f"field {name!r} holds no message of the user")
    if any(role in SYSTEM for role in roles[1:]):
        raise BadRow(f"field {name!r} has a system message that is not the first")
    last = len(roles) - roles[::-1].index("user")
    if not messages[last - 1]["content"].strip():
        raise BadRow(f"field {name!r}: the user's last message is empty")
    return messages[:last]


def _message(where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise BadRow(
            f"{where}: expected an object with role and content, got {repr(value)[:60]}: rename "
            'what it has, for example "from" to "role" and "value" to "content"'
        )
    if value["role"] not in ROLES:
        raise BadRow(f"{where}: role {repr(value['role'])[:60]} is none of {', '.join(ROLES)}")
    content = joined(value["content"])
    if not isinstance(content, str):
        raise BadRow(f"{where}: content must be text, got {repr(content)[:60]}")
    return {"role": value["role"], "content": content}


def joined(content: Any) -> Any:
    """Join the parts of a message as the OpenAI API has them, if all are text."""
    if isinstance(content, list) and all(_is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    return content


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )
