"""What jsonargparse finds wrong, in this project's words: "`option` must be <rule>, got <value>"."""

import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

RENAMED = {
    "--weights": "train starts from the weights of --transfer FILE",
    "--output": "a trained model is chosen by --run FOLDER",
}
WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    Any: "any value",
}
BAD_VALUE = re.compile(r'Parser key "([^"]+)"')
VALUE = re.compile(r"(?:Got|Given) value: (.*)\Z", re.DOTALL)
NO_MAPPING = re.compile(r"Unable to load config '(.*)'")
ABSENT = re.compile(r"the following arguments are required: (.+)")
UNKNOWN = re.compile(
    r"unrecognized arguments: (.+)|does not accept option '([^']+)'|Key '([^']+)' is not expected"
    r"|Option '([^']+)' is not accepted"
)
NO_VALUE = re.compile(r"argument (--\S+): expected")


def sentence(message: str, typehints: dict[str, Any], command: str) -> str:
    """One sentence of this project for one of jsonargparse's.

    Args:
        message: Its sentence.
        typehints: The type of each option by its name.
        command: For which the options were.
    """
    if found := UNKNOWN.search(message):
        name = next(filter(None, found.groups()))
        hints = "".join(f"; {hint}" for option, hint in RENAMED.items() if option in name)
        return f"options must be ones that `dca-triton {command} --help` lists, got {name}{hints}"
    if found := ABSENT.search(message):
        names = ", ".join(option(name, command) for name in found[1].split(", "))
        return f"{names} must be given, got nothing"
    if found := NO_VALUE.search(message):
        return f"{found[1]} must have a value, got none"
    if (found := BAD_VALUE.search(message)) and (value := VALUE.search(message)):
        name = found[1].removeprefix(f"{command}.")
        words = words_of(typehints.get(name, dict))
        return f"{option(name, command)} must be {words}, got {' '.join(value[1].split())}"
    if found:
        name, value = option(found[1], command), NO_MAPPING.search(message)
        got = "another value" if value is None else value[1]
        return f"{name} must be a mapping or a YAML file of its options ({name}.OPTION=VALUE), got {got}"
    return message


def option(name: str, command: str) -> str:
    """An option as it is typed; the two of `export` have no dashes."""
    name = name.removeprefix(f"{command}.")
    return name if name == "command" or (command == "export" and name in ("run", "target")) else f"--{name}"


def words_of(typehint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(typehint), get_args(typehint)
    if origin is Literal:
        return _either([repr(name) for name in inner])
    if origin in (Union, types.UnionType):
        given = [part for part in inner if part is not type(None)]  # nobody types null
        return _either([words_of(part) for part in given])
    if origin is tuple:
        each = [words_of(part) for part in inner if part is not Ellipsis]
        return f"a list of {_plural(each[0])}" if Ellipsis in inner else f"a list [{', '.join(each)}]"
    if origin is list:
        return f"a list of {_plural(words_of(inner[0]))}"
    if typehint is dict or origin is dict:
        return "a mapping"
    return WORDS.get(typehint, getattr(typehint, "__name__", str(typehint)))


def _plural(words: str) -> str:
    return f"{words.partition(' ')[2]}s"


def _either(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
