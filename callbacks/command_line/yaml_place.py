"""File and line of an option in the user's configuration files."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from triptych.callbacks.command_line.packaged_configs import included_file


def config_files(words: Sequence[str]) -> list[Path]:
    """List the files that a command line names by ``--config``.

    >>> config_files(["fit", "--config", "a.yaml", "-c", "b.yaml", "--config=c.yaml"])
    [PosixPath('a.yaml'), PosixPath('b.yaml'), PosixPath('c.yaml')]
    """
    named = [after for word, after in pairwise(words) if _is_option(word)]
    joined = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    return [Path(name) for name in named + joined]


def yaml_place(path: Sequence[str], files: Sequence[Path], value: str | None = None) -> str | None:
    """Return file and line of an option, searching the last file first; None if no file has it.

    Args:
        path: Keys from the root of the configuration to the option.
        files: Configuration files in order. A value that names another YAML file stands for the
            content of that file.
        value: The option's value, if it is known: other elements of a list do not have it.
    """
    for found, key, node in _options(path, files):
        if value is None or (isinstance(node, yaml.ScalarNode) and node.value == value):
            return f"{found}, line {key.start_mark.line + 1}"
    return None


def folder_of(path: Sequence[str], value: str, files: Sequence[Path]) -> Path | None:
    """Return the folder of the file that gives an option this value; None if no file does."""
    for found, _, node in _options(path, files):
        if isinstance(node, yaml.ScalarNode) and node.value == value:
            return found.parent
    return None


def broken_file(files: Sequence[Path]) -> str | None:
    """Describe the first file that holds no configuration; None if all do."""
    for file in files:
        try:
            with file.open() as stream:
                node = yaml.compose(stream, yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as error:
            return f"--config {file} cannot be read: {error}"
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            return f"{file}{line}: not valid YAML ({error.problem}); correct the line"
        except yaml.YAMLError as error:
            return f"{file}: not valid YAML ({error})"
        if not isinstance(node, yaml.MappingNode):
            return (
                f"{file} holds no configuration: it must have sections such as `model:`, `data:` "
                "and `trainer:`"
            )
    return None


def _is_option(word: str) -> bool:
    return word in ("--config", "-c")


def _compose(file: Path) -> yaml.Node | None:
    try:
        with file.open() as stream:
            return yaml.compose(stream, yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _options(
    path: Sequence[str], files: Sequence[Path]
) -> Iterator[tuple[Path, yaml.Node, yaml.Node]]:
    """Yield file, key and value of an option, from the last file to the first."""
    for file in reversed(files):
        yield from _options_in(_compose(file), list(path), file)


def _options_in(
    node: yaml.Node | None, path: list[str], file: Path
) -> Iterator[tuple[Path, yaml.Node, yaml.Node]]:
    """Yield every place that ``path`` leads to; a list stands for all of its elements."""
    if isinstance(node, yaml.ScalarNode) and Path(node.value).suffix in (".yaml", ".yml"):
        included = included_file(node.value, file.parent)
        node, file = _compose(included), included
    if isinstance(node, yaml.ScalarNode) and path == ["class_path"]:
        yield file, node, node  # `model: NAME` is short for `model: {class_path: NAME}`
    elif isinstance(node, yaml.SequenceNode):
        for element in node.value:
            yield from _options_in(element, path, file)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if str(key.value).rstrip("+") == path[0]:
                if len(path) == 1:
                    yield file, key, value
                else:
                    yield from _options_in(value, path[1:], file)
