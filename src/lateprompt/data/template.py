"""Split a template such as `{text} . It was {mask} .` into literal text and fields."""

from __future__ import annotations

import re
from typing import NamedTuple

from lateprompt.utils.errors import LatePromptError

LITERAL = "literal"
FIELDS = ("text", "text_pair", "mask", "label", "target", "sep")
ANSWERS = {"mask", "label", "target"}
"""Fields for the answer: each kind of template has one of them."""


class Piece(NamedTuple):
    """One piece of a template.

    Args:
        kind: `literal`, or the field's name.
        text: the literal text with the whitespace before it; of a field only the whitespace before it.
    """

    kind: str
    text: str


def split_template(template: str) -> list[Piece]:
    """Split a template into its pieces; whitespace belongs to the piece that follows, or to the last literal.

    Example:
        >>> [tuple(piece) for piece in split_template("{text} . It was {mask}")]
        [('text', ''), ('literal', ' . It was'), ('mask', ' ')]
    """
    pieces: list[Piece] = []
    # With one group in the pattern, re.split returns literals at even and field names at odd positions.
    parts = re.split(r"\{(\w+)\}", template)
    for literal, field in zip(parts[::2], [*parts[1::2], None], strict=True):
        body = literal if field is None else literal.rstrip()
        if body:
            pieces.append(Piece(LITERAL, body))
        if field is not None:
            pieces.append(Piece(field, literal[len(body) :]))
    return pieces


def check_template(key: str, template: object, *, needs: str | None) -> None:
    """Check one template of a task.

    Args:
        key: the template's name in the task, for the message.
        template: the template; anything but a string is refused.
        needs: the field that must occur exactly once besides `{text}`: `mask`, `label`, `target` or None.

    Raises:
        LatePromptError: no string, an unknown or stray placeholder, a field that is missing or occurs twice, a text
            that comes after `{label}`, or anything after `{target}`.
    """
    if not isinstance(template, str):
        raise LatePromptError(
            f"{key} {template!r} is no string; write something like '{{text}} . It was {{{needs}}} .'"
        )
    allowed = [name for name in FIELDS if name not in ANSWERS or name == needs]
    names = [piece.kind for piece in split_template(template) if piece.kind != LITERAL]
    for name in names:
        if name not in allowed:
            choices = ", ".join(f"{{{name}}}" for name in allowed)
            raise LatePromptError(f"{key} {template!r} has the unknown placeholder {{{name}}}; use {choices}")
    if re.search(r"[{}]", re.sub(r"\{\w+\}", "", template)):
        raise LatePromptError(
            f"{key} {template!r} has a stray brace; braces only stand around placeholders like {{text}}"
        )
    for name in ("text", *([needs] if needs else [])):
        if names.count(name) != 1:
            raise LatePromptError(f"{key} {template!r} has {names.count(name)} times {{{name}}}; it needs exactly one")
    if names.count("text_pair") > 1:
        raise LatePromptError(f"{key} {template!r} has {{text_pair}} more than once; it may occur once")
    if needs == "label" and {"text", "text_pair"} & set(names[names.index("label") :]):
        raise LatePromptError(
            f"{key} {template!r} has a text after {{label}}, which a causal model cannot see; put it before"
        )
    if needs == "target" and not template.rstrip().endswith("{target}"):
        raise LatePromptError(f"{key} {template!r} goes on after {{target}}; the target ends the text, so put it last")
