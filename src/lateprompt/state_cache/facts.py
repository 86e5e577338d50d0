"""What a store says of itself: `store.json`, read with distrust."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from lateprompt.state_cache.codec import DTYPES
from lateprompt.state_cache.locking import CannotCache, cannot_hold
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json
from lateprompt.utils.names import POOLINGS
from lateprompt.utils.validation import is_of

STORE_FILE = "store.json"
FORMAT = 1
_MOST = 1 << 24  # no hidden size and no depth is beyond; offsets then fit into 64 bits


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of the store in `folder`, checked.

    Raises:
        CannotCache: they cannot be read here.
        LatePromptError: there are none, or they are not those of a store.
    """
    facts = find_facts(folder)
    if facts is None:
        raise LatePromptError(f"trunk states {str(folder / STORE_FILE)!r} do not exist")
    return facts


def find_facts(folder: Path) -> dict[str, Any] | None:
    """As `read_facts`; None where there are none, which another process may change at any time."""
    path = folder / STORE_FILE
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LatePromptError(f"trunk states {str(path)!r} are no regular file; remove them")
        path.open("rb").close()  # may it be read? `read_json` does not tell that from a broken file
        facts = read_json(path, "trunk states")
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise cannot_hold(folder, error) from None
    except OSError as error:
        raise CannotCache(
            f"trunk states {str(folder)!r} cannot be read ({error.strerror}); mend its permissions, use another "
            "folder, or --states off"
        ) from None
    except LatePromptError as error:
        if not path.exists():  # removed between the two looks
            return None
        raise LatePromptError(
            f"{str(error).partition('; ')[0]}; remove {str(folder)!r}, which is computed anew"
        ) from None
    _check(folder, facts)
    return facts


def _check(folder: Path, facts: dict[str, Any]) -> None:
    if facts.get("format") != FORMAT:
        raise LatePromptError(
            f"trunk states {str(folder)!r} have format {facts.get('format')!r}, expected {FORMAT}; remove them"
        )
    for name in ("hidden_size", "dtype", "prompt_layer"):
        if name not in facts:
            raise LatePromptError(f"trunk states {str(folder / STORE_FILE)!r} say nothing of {name!r}; remove them")
    for name in ("hidden_size", "prompt_layer"):
        if not is_of(facts[name], int) or not 1 <= facts[name] <= _MOST:
            raise LatePromptError(
                f"trunk states {str(folder / STORE_FILE)!r} have {name} {_short(facts[name])}, expected a whole number "
                "from 1; remove them"
            )
    if facts["dtype"] not in DTYPES:
        raise LatePromptError(
            f"trunk states {str(folder / STORE_FILE)!r} have dtype {_short(facts['dtype'])}, expected one of "
            f"{', '.join(DTYPES)}; remove them"
        )
    if "pooling" in facts and facts["pooling"] not in POOLINGS:
        raise LatePromptError(
            f"trunk states {str(folder / STORE_FILE)!r} have pooling {_short(facts['pooling'])}, expected one of "
            f"{', '.join(POOLINGS)}; remove them"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
