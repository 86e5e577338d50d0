"""Read YAML that users write: without running code, with limits on size and depth, and with one-line errors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from lateprompt.utils.aliases import todays_names
from lateprompt.utils.errors import LatePromptError, first_line
from lateprompt.utils.inputs import read_text

LONGEST = 1_000_000
"""Largest YAML file in bytes: PyYAML reads some 100 kB a second."""
MOST_NODES = 200_000
"""Largest number of values, each use of an alias counted."""
DEEPEST = 50


_TYPED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp"))
_TEXT = "tag:yaml.org,2002:str"


def read_yaml(path: str | Path, what: str, *, as_text: Collection[str] = ()) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        what: what messages call it: "task file", "plan".
        as_text: top-level keys below which everything is read as text (`yes` stays "yes").

    Raises:
        LatePromptError: no regular file, not UTF-8, no YAML, or too large; the message names the file.
    """
    return parse_yaml(read_text(Path(path), what, limit=LONGEST), f"{what} {str(path)!r}", as_text=as_text)


def parse_yaml(text: str, source: str, *, as_text: Collection[str] = (), all_text: bool = False) -> Any:
    """Parse a YAML text.

    Args:
        text: the text.
        source: where it came from, for messages.
        as_text: top-level keys below which everything is read as text (`yes` stays "yes").
        all_text: read everything as text.

    Raises:
        LatePromptError: no YAML, a key that occurs twice, or too deep nesting or too many repetitions.

    Example:
        >>> parse_yaml("labels: [yes, no]", "task file", as_text=["labels"])
        {'labels': ['yes', 'no']}
    """
    return _read(text, source, None if all_text else as_text, lambda loader, node: loader.construct_document(node))


def checked_yaml(text: str, source: str, *, as_text: Collection[str] = (), known: Collection[str] = ()) -> str:
    """The same YAML for another reader, checked as by `parse_yaml`.

    Its texts are quoted where they must be, and of the settings that are `known`, earlier names become today's.
    """

    def make(loader: yaml.SafeLoader, node: yaml.Node) -> str:
        keys = {key.value: key for key, _ in node.value} if isinstance(node, yaml.MappingNode) else {}
        for today, key in todays_names(keys, known).items():
            key.value = today
        written: str = yaml.serialize(node, allow_unicode=True)
        loader.construct_document(node)  # only to find values that cannot be read
        return written

    return _read(text, source, as_text, make) or ""


def _read(
    text: str, source: str, as_text: Collection[str] | None, make: Callable[[yaml.SafeLoader, yaml.Node], Any]
) -> Any:
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()  # nodes, not values: what an alias repeats is there once
        if node is None:
            return None
        _check(node, source)
        _take_as_text(node, as_text)
        return make(loader, node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise LatePromptError(f"{source}{line}: no valid YAML ({problem}); quote texts with braces or colons") from None
    except RecursionError:
        raise LatePromptError(f"{source}: nested too deep; a file of settings needs a few levels") from None
    except LatePromptError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # PyYAML raises these for values such as 2001-99-99, !!int x, or a number of 10,000 digits.
        raise LatePromptError(f"{source}: a value that YAML cannot read ({first_line(error)}); quote it") from None
    finally:
        if loader is not None:
            loader.dispose()


def _take_as_text(root: yaml.Node, keys: Collection[str] | None) -> None:
    """Read booleans, numbers and dates below these keys (None: everywhere) as the texts that were written.

    YAML 1.1 reads `yes`, `on` and `no` as booleans, so that such labels would be lost.
    """
    waiting = [root]
    if keys is not None:
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        waiting = [value for key, value in pairs if key.value in keys]
    done: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        if isinstance(node, yaml.ScalarNode) and node.tag in _TYPED:
            node.tag = _TEXT
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]


def _check(root: yaml.Node, source: str) -> None:
    """Raise LatePromptError for repeated keys, values that contain themselves, and too many or too deep values."""
    sizes: dict[int, int] = {}  # values in each node, by its id; 0 while the node's own values are counted

    def size(node: yaml.Node, depth: int) -> int:
        known = sizes.get(id(node))
        line = node.start_mark.line + 1
        if known == 0 or depth > DEEPEST:
            problem = "a value that contains itself" if known == 0 else f"nested deeper than {DEEPEST} levels"
            raise LatePromptError(f"{source}, line {line}: {problem}; write plain settings")
        if known is not None:
            return known
        sizes[id(node)] = 0
        total = 1 + sum(size(child, depth + 1) for child in _children(node, source))
        if total > MOST_NODES:
            raise LatePromptError(f"{source}, line {line}: more than {MOST_NODES:,} values by its aliases; write fewer")
        sizes[id(node)] = total
        return total

    size(root, 1)


def _children(node: yaml.Node, source: str) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[str] = set()
    for key, _ in node.value:
        # PyYAML silently keeps the last of two equal keys, so that a label would be lost.
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise LatePromptError(f"{source}, line {key.start_mark.line + 1}: {key.value!r} occurs twice; keep one")
            seen.add(key.value)
    return [part for pair in node.value for part in pair]
