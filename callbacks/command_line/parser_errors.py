"""Parser errors, shortened to the option, the cause and the remedy.

jsonargparse reports every type that it tried, nested in each other, with what each expected. The
one line that matters is in the middle. This module reads that text from the outside in.
"""

import ast
import dataclasses
import importlib
import re
import sys
import textwrap
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from jsonargparse._parameter_resolvers import get_signature_parameters

from triptych.callbacks.command_line.yaml_place import broken_file, config_files, yaml_place

UNION = "Does not validate against any of the Union subtypes"
UNKNOWN_OPTION = re.compile(
    r"(?:Option|(?P<kind>Group|Subcommand) '(?P<owner>[^']+)' does not accept option) "
    r"'(?P<name>[^']+)'(?: is not accepted)?$"
)
NO_PATH = re.compile(r"- Expected a path but (?P<path>.+) either not accessible or invalid$")
RESTRICTED = re.compile(r"Not of type (?P<name>\w+): (?P<reason>.*)")
# Types of `jsonargparse.typing`.
NUMBERS = {
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number of at least 0",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number of at least 0",
    "ClosedUnitInterval": "a number from 0 to 1",
    "OpenUnitInterval": "a number between 0 and 1",
}
# Begins the errors of `triptych.class_paths`.
CLASS_PROBLEM = "class_path: "
NO_COMPONENT = re.compile(
    r"Expected an instantiatable class, but (?P<abstract>\S+) is abstract"
    r"|Import path (?P<other>\S+) does not (?P<relation>correspond to a subclass of|implement "
    r"protocol) (?P<kind>\w+)"
)


# Branches of a union that got beyond the type of the value.
DEEPER = ("Problem with", "Parser key", "Expected an instantiatable", "Import path", CLASS_PROBLEM)


@dataclasses.dataclass
class Fault:
    """The innermost error in a configuration.

    Attributes:
        path: Keys from the root of the configuration to the option.
        problem: The error in the parser's words.
        owner: The class that the option belongs to, with the number of keys that lead to it.
        class_path: The import path given for that class.
        wrong_class: The name of a class that cannot be used; `path` ends in `class_path` then.
    """

    path: list[str]
    problem: str
    owner: tuple[type, int] | None = None
    class_path: str = ""
    wrong_class: str | None = None


@contextmanager
def short_parser_errors(
    words: Sequence[str] | None, parsers: Mapping[str, ArgumentParser]
) -> Iterator[None]:
    """Raise the parser's error in the words of `explain`.

    Args:
        words: The command line; by default that of the process.
        parsers: Parser of each subcommand.
    """
    try:
        yield
    except ArgumentError as error:
        words = [str(word) for word in (sys.argv[1:] if words is None else words)]
        raise ArgumentError(None, explain(str(error), words, parsers)) from error


def explain(
    message: str, words: Sequence[str] = (), parsers: Mapping[str, ArgumentParser] | None = None
) -> str:
    r"""Turn the parser's message into one readable sentence.

    Args:
        message: The parser's message.
        words: The command line, to find the file and the line of an option.
        parsers: Parser of each subcommand, to find its options.

    >>> explain("Parser key \"a\":\n  Does not validate against any of the Union subtypes\n"
    ...         "  Subtypes: [<class 'int'>, <class 'NoneType'>]\n  Errors:\n"
    ...         "    - Expected a <class 'int'>\n    - Expected a <class 'NoneType'>\n"
    ...         "  Given value type: <class 'str'>\n  Given value: many")
    "a: expected int or null, got 'many'"
    """
    if message.startswith("the following arguments are required"):
        named = re.sub(r"\w+\.", "", message.rpartition(": ")[2])
        return (
            f"nothing says what to run: {named} is missing. Name an experiment, such as "
            "--config configs/quickstart.yaml"
        )
    missing = re.match(r'Parser key "config": File does not exist: \'(.+)\'', message)
    if missing:
        return _missing_config(Path(missing[1]))
    if broken := broken_file(config_files(words)):
        return broken
    if message.startswith('expected "subcommand"') or "argument subcommand" in message:
        return (
            f"{message.rstrip('.')}. To train, write: python train.py fit --config "
            "configs/quickstart.yaml"
        )
    fault = _innermost(message, [])
    if fault.path[:1] and fault.path[0] in (parsers or {}):
        fault.path.pop(0)
    given_to = next((parser for name, parser in (parsers or {}).items() if name in words), None)
    text = _in_our_words(fault, given_to)
    given = _is_given(fault.path, words)
    place = None if given else yaml_place(fault.path, config_files(words), fault.wrong_class)
    if given and fault.wrong_class and not _is_given_alone(fault.path, words):
        fault.path.pop()
    where = ".".join(fault.path) + (f" ({place})" if place else "")
    text = text.replace(f": {CLASS_PROBLEM}", ": ")  # of an option that shows a class's help
    return f"{where}: {text}" if where else text


# -- reading --------------------------------------------------------------------------------------


def _innermost(message: str, path: list[str], **known: Any) -> Fault:
    """Follow a message inwards, along the branch of each union that got furthest."""
    head, _, rest = message.strip().partition("\n")
    body = textwrap.dedent(rest)
    if match := re.match(r'Parser key "([^"]+)"(?: element \d+)?:\s*(.*)', head):
        inner = "\n".join(part for part in (match[2], body) if part)
        return _innermost(inner, [*path, *match[1].split(".")], **known)
    if match := re.match(r"Problem with given class_path '([^']+)':", head):
        if body.startswith(CLASS_PROBLEM):
            return _wrong_class(path, match[1], body.removeprefix(CLASS_PROBLEM), **known)
        owner = imported(match[1])
        # The keys of a dataclass stand directly under it, those of other classes in `init_args`.
        path = path if dataclasses.is_dataclass(owner) else [*path, "init_args"]
        pair = (owner, len(path)) if owner else None
        return _innermost(body, path, owner=pair, class_path=match[1])
    if head == UNION:
        branches = _named_again(_branches(body), body)
        deeper = [b for b in branches if b.startswith(DEEPER)]
        if deeper:
            return _innermost(deeper[0], path, **known)
        return Fault(path, _expected_one_of(branches, body), **known)
    if match := NO_PATH.match(head):
        if Path(match["path"]).suffix in (".yaml", ".yml"):
            return Fault(path, _no_path(match["path"]), **known)
        return _innermost(body.removeprefix("- "), path, **known)
    if match := NO_COMPONENT.match(head):
        return _wrong_class(path, match["abstract"] or match["other"], _unusable(match), **known)
    if match := re.match(r"unrecognized arguments: --([\w.]+)", message):
        return Fault([*path, *match[1].split(".")[:-1]], _unknown(match[1]), **known)
    if match := re.match(r"Expected a (.+)\. Got value: (.*)", message, re.DOTALL):
        return Fault(path, f"expected {_type(match[1])}, got {_value(match[2])}", **known)
    if match := RESTRICTED.match(head):
        return Fault(path, f"expected {_number(match)}, got {_refused(match)}", **known)
    return Fault(path, message.strip(), **known)


def _wrong_class(path: list[str], name: str, problem: str, **known: Any) -> Fault:
    if problem.startswith("there is no file"):
        return Fault(path, problem, **known)
    if problem.startswith("expected a class_path"):
        return Fault(path, problem, **known)
    return Fault([*path, "class_path"], problem, wrong_class=name, **known)


def _unusable(match: re.Match[str]) -> str:
    """Say why a class cannot be used in a place, from a match of `NO_COMPONENT`."""
    if name := match["abstract"]:
        missing = sorted(getattr(imported(name), "__abstractmethods__", ()))
        methods = f": it does not define {', '.join(missing)}" if missing else ""
        return f"{name} is abstract{methods}; give a class that derives from it and does"
    if match["relation"].startswith("implement"):
        return f"{match['other']} has not all methods of {match['kind']}"
    return f"{match['other']} is not a {match['kind']}; give a class that derives from it"


def _branches(body: str) -> list[str]:
    errors = re.search(r"^Errors:\n(.*?)(?=^Given value type:|\Z)", body, re.DOTALL | re.MULTILINE)
    items = re.split(r"^- ", textwrap.dedent(errors[1]) if errors else "", flags=re.MULTILINE)
    return [_without_indent(item.rstrip()) for item in items if item.strip()]


def _named_again(branches: list[str], body: str) -> list[str]:
    """Put the given value back where the parser took it out of a sentence."""
    given = re.search(r"^Given value: (\S+)$", body, re.MULTILINE)
    if given is None:
        return branches
    sentence = re.compile(r"^(Expected an instantiatable class, but|Import path) (is|does)\b")
    return [sentence.sub(rf"\1 {given[1]} \2", branch) for branch in branches]


def _without_indent(item: str) -> str:
    head, newline, rest = item.partition("\n")
    return head + newline + textwrap.dedent(rest)


def _expected_one_of(branches: list[str], body: str) -> str:
    given_type, given = (
        match[1] if (match := re.search(pattern, body, re.DOTALL | re.MULTILINE)) else ""
        for pattern in (r"^Given value type: (.*?)$", r"^Given value: (.*)\Z")
    )
    names = []
    for branch in branches:
        expected = re.match(r"Expected an? (.+?)(?:\. Got value|$)", branch)
        subclass = re.match(r"Not a valid subclass of (\w+)", branch)
        if restricted := RESTRICTED.match(branch):
            names.append(_number(restricted))
        elif subclass:
            names.append(f"the class_path of a {subclass[1]}")
        else:
            names.append(_type(expected[1]) if expected else branch.partition("\n")[0])
    if given == "None" and given_type == "<class 'str'>" and "null" in names:
        return NULL_IN_A_GROUP
    names.sort(key=lambda name: name == "null")  # last
    listed = ", ".join(names[:-1]) + " or " + names[-1] if len(names) > 1 else "".join(names)
    return f"expected {listed}, got {_value(given)}"


def _unknown(option: str) -> str:
    return f"Option '{option.rpartition('.')[2]}' is not accepted"


def _no_path(text: str) -> str:
    return f"there is no file {text} (paths in a configuration start at its folder)"


# A parsed null becomes the word "None" on its way into a nested group (jsonargparse 4.53).
NULL_IN_A_GROUP = "null cannot be given to an option this deep by its full name"


def _type(text: str) -> str:
    """Name a type in plain words.

    >>> [_type(t) for t in ("<class 'int'>", "typing.Literal['a', 'b']", "list[models.x.Y]")]
    ['int', "'a' or 'b'", 'list[Y]']
    """
    if match := re.match(r"(?:typing\.)?Literal\[(.+)\]$", text):
        return match[1].replace(", ", " or ")
    text = re.sub(r"<class '([^']+)'>", r"\1", text).replace("NoneType", "null")
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", text)


def _value(text: str) -> str:
    if match := re.match(r"NestedArg\(key=.*?, val=(.*)\)$", text, re.DOTALL):
        text = match[1]
    try:
        text = repr(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        text = repr(text)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _number(match: re.Match[str]) -> str:
    return NUMBERS.get(match["name"], f"a {match['name']}")


def _refused(match: re.Match[str]) -> str:
    """Return the value that a restricted type refuses.

    >>> [
    ...     _refused(RESTRICTED.match(f"Not of type PositiveInt: {reason}"))
    ...     for reason in (
    ...         "0 does not conform to restriction v>0",
    ...         "invalid literal for int() with base 10: 'x'",
    ...         "int() argument must be a string or a real number, not 'NoneType'",
    ...     )
    ... ]
    ['0', "'x'", 'null']
    """
    reason = match["reason"]
    if " does not conform" in reason:
        return _value(reason.partition(" does not conform")[0])
    last = reason.rpartition(" ")[2].strip("'")
    return _type(last) if "argument must be" in reason else _value(last)


def _is_given(path: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether the command line, not a file, gives the option or one of its groups."""
    options = [word[2:].partition("=")[0].split(".") for word in words if word.startswith("--")]
    return not path or any(list(path[: len(option)]) == option for option in options)


def _is_given_alone(path: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether the command line has exactly this option."""
    return any(word.partition("=")[0] == f"--{'.'.join(path)}" for word in words)


# -- wording --------------------------------------------------------------------------------------


def _in_our_words(fault: Fault, parser: ArgumentParser | None) -> str:
    """Word the problem with its remedy; may change the fault's path."""
    if match := UNKNOWN_OPTION.match(fault.problem):
        group = match["owner"].split(".") if match["kind"] == "Group" else []
        fault.path += [*group, *match["name"].split(".")]
        if fault.owner is not None:
            names, kind = _options_of(fault.owner[0], fault.path[fault.owner[1] : -1])
        else:
            fault.path = _to_first_unknown(parser, fault.path)
            names, kind = _siblings(parser, fault.path), None
        return f"there is no such option{_instead(fault.path[-1], names, kind)}"
    if fault.problem == NULL_IN_A_GROUP:
        *group, name = fault.path
        return f"{NULL_IN_A_GROUP}: write --{'.'.join(group)} '{{{name}: null}}' instead"
    return fault.problem


def _instead(name: str, names: list[str], kind: str | None) -> str:
    close = get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; {kind} takes {', '.join(names)}" if kind and names else ""


def _options_of(owner: type, keys: Sequence[str]) -> tuple[list[str], str]:
    """Return the options of a class, or of the class that its options ``keys`` lead to."""
    for key in keys:
        if key == "init_args":
            continue
        hint = class_options(owner).get(key)
        types = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)]
        inner = next(filter(dataclasses.is_dataclass, types), None)
        if inner is None:
            return [], owner.__name__
        owner = inner
    return list(class_options(owner)), owner.__name__


def class_options(owner: type) -> dict[str, Any]:
    """Return the types of a class's options by name, with those that ``**kwargs`` passes on."""
    return {p.name: p.annotation for p in get_signature_parameters(owner, "__init__")}


def _to_first_unknown(parser: ArgumentParser | None, path: list[str]) -> list[str]:
    """Cut a path after the first key that the parser does not know, `modell` in `modell.x.y`."""
    known = [action.dest.split(".") for action in parser._actions] if parser else []
    for end in range(1, len(path)):
        start = path[:end]
        if start in known:  # what is in it is the business of a class
            return path
        if not any(keys[:end] == start for keys in known):
            return start
    return path


def _siblings(parser: ArgumentParser | None, path: Sequence[str]) -> list[str]:
    """Return the options of a parser that stand beside the last key of ``path``."""
    if parser is None:
        return []
    prefix = list(path[:-1])
    options = [action.dest.split(".") for action in parser._actions]
    return sorted(
        {
            keys[len(prefix)]
            for keys in options
            if keys[: len(prefix)] == prefix and len(keys) > len(prefix)
        }
    )


def imported(class_path: str) -> Any:
    """Return the class of an import path; None if it cannot be imported."""
    module, _, name = class_path.rpartition(".")
    return _try(lambda: getattr(importlib.import_module(module), name))


def _try(make: Callable[[], Any]) -> Any:
    """Return the result, or None: a further error must not hide the one to be explained."""
    try:
        return make()
    except Exception:
        return None


def _missing_config(path: Path) -> str:
    names = [file.stem for file in path.parent.glob("*.yaml")]
    close = get_close_matches(path.stem, names, n=1)
    hint = f"; did you mean {close[0]}.yaml?" if close else "; give one of configs/, or your own"
    return f"--config: there is no file {path}{hint}"
