"""The parser of one command: options with dashes, help in groups, one line for an error, suggestions."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser, Namespace
from jsonargparse import DefaultHelpFormatter as JsonargparseFormatter

from lateprompt.cli.config_files import LABEL_WORDS, config_text
from lateprompt.utils.aliases import FIELDS
from lateprompt.utils.suggestions import closest_option, did_you_mean

REQUIRED = "required"
OTHER = "other options"
_KINDS = {"int": "N", "float": "X", "bool": "", "dict": "MAPPING"}
_KINDS_IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping, as in '{name: word}'",
}
_PLACES = {
    "config": "FILE",
    "data": "FILE",
    "dev": "FILE",
    "file": "FILE",
    "folder": "FOLDER",
    "latex": "FILE",
    "markdown": "FILE",
    "methods": "METHOD",
    "output": "PATH",
    "plan": "PLAN",
    "results": "RESULTS",
    "run": "RUN",
    "seeds": "N",
    "set": "KEY=VALUE",
    "shots": "N",
    "states": "STATES",
    "tasks": "TASK",
    "test": "FILE",
    "train": "FILE",
}
"""What stands behind an option in the help, where its name in capitals says too little."""


class _Formatter(JsonargparseFormatter):
    """What an option is for and its default; no types of Python."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)  # type: ignore[no-untyped-call]

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").strip().removesuffix(".")
        if isinstance(action, argparse._HelpAction):
            return "show this help and exit"
        if action.dest == "print_config":
            return "print all settings as YAML, for --config, and exit"
        default = action.default
        plain = isinstance(default, str | int | float) and default not in (argparse.SUPPRESS, "") and action.nargs != 0
        if isinstance(default, list) and default:
            default, plain = " ".join(map(str, default)), True
        notes = [f"also --{_dashes(name)}" for name, today in FIELDS.items() if today == action.dest]
        if plain and not action.required and "default" not in text:
            notes.append(f"default: {str(default).lower() if isinstance(default, bool) else default}")
        if notes:
            text += f" ({', '.join(notes)})"
        return text.replace("%", "%%")

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return metavar_of(action)

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return metavar_of(action)


def metavar_of(action: argparse.Action) -> str:
    """What stands for an argument's value in the help."""
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    kinds = re.findall(r"[a-z]+", str(getattr(action, "_typehint", None) or getattr(action.type, "__name__", "")))
    if action.dest not in _PLACES:
        for kind, letter in _KINDS.items():
            if kind in kinds and letter:
                return letter
    return _PLACES.get(action.dest, action.dest.rpartition("_")[2].upper())


class Parser(ArgumentParser):
    """The parser of a command.

    Args:
        examples: command lines shown at the end of the help.
    """

    usually_needed: Sequence[str] = ()
    """Options that are needed unless another one says that they are not: shown, and asked for, as needed ones."""
    _words: Sequence[str] = ()

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong in one line; exit code 2."""
        print(f"lateprompt: {self._in_words(' '.join(str(message).split()))}", file=sys.stderr)
        raise SystemExit(2)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """The settings of a config file, which must be a regular one."""
        known = [action.dest for action in self._actions]
        found: Namespace = self.parse_string(
            config_text(str(path), known), os.path.basename(str(path)), *args, **kwargs
        )
        return found

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        self._short_usage()  # before parsing, which hides for a while what is required
        self._words = [str(word) for word in (args[0] if args and args[0] is not None else ())]
        return super().parse_args(*args, **kwargs)

    def _parse_known_args(self, arg_strings: Any, *args: Any, **kwargs: Any) -> Any:
        """Take options by their earlier names too; of an option under both, say so."""
        given = {word.partition("=")[0] for word in arg_strings}
        for name, today in FIELDS.items():
            old, new = f"--{name}", f"--{today}"
            if new in self._option_string_actions:
                self._option_string_actions.setdefault(old, self._option_string_actions[new])
                if {old, new} <= given:
                    self.error(
                        f"{_dashes(old)} and {_dashes(new)} are two names of one option; give {_dashes(new)} alone"
                    )
        return super()._parse_known_args(arg_strings, *args, **kwargs)

    def add_function(self, function: Callable[..., Any]) -> None:
        """Add the arguments of a function: their types from its signature, what they are for from its docstring.

        What may be given by position is a positional argument, other parameters are options: a bool is a flag, a
        sequence takes several words, a Literal one of its values.
        """
        texts = {part.arg_name: part.description for part in docstring_parser.parse(function.__doc__ or "").params}
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            hint, default = parameter.annotation, parameter.default
            is_option, is_needed = parameter.kind is parameter.KEYWORD_ONLY, default is parameter.empty
            given: dict[str, Any] = {"help": texts[name]} if is_needed else {"help": texts[name], "default": default}
            parts = [part for part in (hint, *get_args(hint)) if get_origin(part) is Sequence]
            if hint is bool:
                given["action"] = "store_true"
            elif get_origin(hint) is Literal:
                given["choices"] = list(get_args(hint))
            elif parts:
                given |= {"nargs": "+", "default": list(default) if isinstance(default, tuple) else default}
            else:
                given["type"] = hint
            if is_option and is_needed:
                given["required"] = True
            if not is_option and not is_needed:
                given["nargs"] = "?"
            if given.get("default") is parameter.empty:
                del given["default"]
            self.add_argument(f"--{name}" if is_option else name, **given)

    def arrange(self, groups: dict[str, Iterable[str]], about: dict[str, str] | None = None) -> None:
        """Show the options in these groups, in this order; those that none names come last.

        Args:
            groups: title to names of options, with underscores.
            about: title to a sentence about the group.
        """
        by_name = {action.dest: action for action in self._actions if action.option_strings}
        arranged, placed = [], set()
        for title, names in groups.items():
            group = self.add_argument_group(title, (about or {}).get(title))
            group._group_actions = [by_name[n] for n in dict.fromkeys(names) if n in by_name and n not in placed]
            placed |= {action.dest for action in group._group_actions}
            arranged.append(group)
        others = self.add_argument_group(OTHER)
        others._group_actions = [action for name, action in by_name.items() if name not in placed]
        positional = [group for group in self._action_groups if any(not a.option_strings for a in group._group_actions)]
        self._action_groups = [*positional, *arranged, others]

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        self._short_usage()
        text = super().format_help(*args, **kwargs)
        text = re.sub(r"--[a-z][a-z_]+", lambda match: match[0].replace("_", "-"), text)
        if self.examples:
            text += "\nexamples:\n" + "".join(f"  {line}\n" for line in self.examples)
        return text

    def _short_usage(self) -> None:
        """The command with what it needs; its options are listed below."""
        if self.usage is not None or self._subcommands_action is not None:
            return
        needed = [action for action in self._actions if action.option_strings and self._needs(action)]
        given = [action for action in self._actions if not action.option_strings]
        shown = [f"{action.option_strings[-1]} {_value(action)}" for action in needed]
        shown += [_value(action) if action.nargs not in ("?", "*") else f"[{_value(action)}]" for action in given]
        self.usage = " ".join([self._called, *shown, "[options]"]).replace("_", "-").replace("%", "%%")

    @property
    def _called(self) -> str:
        return self.prog.replace(" [options]", "")

    def _needs(self, action: argparse.Action) -> bool:
        return (
            action.required
            or action.dest in self.usually_needed
            or action.dest in getattr(self, "_extra_required_keys", ())
        )

    def _in_words(self, message: str) -> str:
        """An error of jsonargparse's, for those who see options with dashes."""
        if found := re.search(r"(?i)unrecognized arguments?: (.*)", message):
            return self._unknown(found[1].split(" "))
        if found := re.search(r'expected "\w+" to be one of \{(.*)\}, but it was not provided', message):
            return f"{self._called} needs one of {', '.join(found[1].split(','))} behind it"
        if found := re.search(r"(?i)arguments are required: (\w+)\.(.*)", message):  # of a subcommand
            names = [name.rpartition(".")[2] for name in found[2].split(", ")]
            assert self._subcommands_action is not None
            return self._say_needed(names, self._subcommands_action.choices[found[1]], f"{self._called} {found[1]}")
        if found := re.search(r"(?i)arguments are required: (.*)", message):
            names = [name.strip() for name in found[1].split(",")]
            if not self._gives("config"):
                names = [*(name for name in self.usually_needed if not self._gives(name)), *names]
            return self._say_needed(names, self, self._called)
        if found := re.search(r"argument (\S+): invalid choice: (['\"])(.*?)\2 \(choose from (.*)\)", message):
            choices = re.findall(r"[^\s',\"]+", found[4])
            return (
                f"{_dashes(found[1])} {found[3]!r} is unknown{did_you_mean(found[3], choices)}; "
                f"choose one of {', '.join(choices)}"
            )
        if found := re.search(r"argument (--\S+): expected (at least )?one argument", message):
            return f"{_dashes(found[1])} needs a value behind it"
        if found := re.search(r"argument (--\S+): ignored explicit argument (.*)$", message):
            return f"{_dashes(found[1])} takes no value; leave out {found[2]}"
        if found := re.search(r"Parser key ['\"]([^'\"]+)['\"]: .*(?:Got|Given) value: (.*)$", message):
            wanted = [words for kind, words in _KINDS_IN_WORDS.items() if re.search(rf"\b{kind}\b", message)]
            if wanted:
                return f"--{_dashes(found[1])} {found[2]!r} is no value for it; give {' or '.join(wanted)}"
        if found := re.search(r"argument --label_words: invalid label_words value: (.*)$", message):
            return f"--label-words {found[1]} is no value for it; {LABEL_WORDS}"
        if found := re.search(r"(?:Key|Option|key|option) ['\"]([^'\"]+)['\"] is not (?:expected|accepted)", message):
            return self._unknown([f"--{found[1]}"])
        if found := re.match(r"Parser key ['\"]([^'\"]+)['\"]: (.*)", message):
            return f"--{_dashes(found[1])}: {found[2]}"
        return message

    def _gives(self, name: str) -> bool:
        """Whether an option is on the command line that is being read."""
        return any(word.partition("=")[0] == f"--{name}" for word in self._words)

    def _say_needed(self, names: Sequence[str], parser: Any, called: str) -> str:
        """What to say of arguments that a parser needs, and that are not there."""
        options = {action.dest for action in parser._actions if action.option_strings}
        shown = [f"--{_dashes(name)}" if name in options else name.upper() for name in names]
        what = "is" if len(shown) == 1 else "are"
        more = " and examples" if parser is self else ""
        return f"{', '.join(shown)} {what} needed; {called} --help shows all options{more}"

    def _unknown(self, words: Sequence[str]) -> str:
        """What to say of words on the command line that no argument takes."""
        option = next((word for word in words if word.startswith("-")), None)
        if option is None:
            return f"there is no place for {words[0]!r}; {self._called} --help shows what there is"
        given = option.partition("=")[0]
        known = [action.dest for action in self._actions if action.option_strings and action.help != argparse.SUPPRESS]
        meant = closest_option(given.strip("-"), known)
        hint = "" if meant is None else f" (did you mean '--{_dashes(meant)}'?)"
        return f"there is no option {_dashes(given)!r}{hint}; {self._called} --help lists them"


def _value(action: argparse.Action) -> str:
    shown = action.metavar or metavar_of(action)
    return f"{shown if isinstance(shown, str) else shown[0]}{' …' if action.nargs == '+' else ''}"


def _dashes(name: str) -> str:
    return name.replace("_", "-")
