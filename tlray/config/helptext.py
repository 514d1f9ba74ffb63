"""Parses command lines into config dataclasses, with help texts that are wrapped to the terminal's width."""

import ast
import dataclasses
import inspect
import itertools
import shutil
import textwrap
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from tlray.errors import ConfigError

Config = TypeVar("Config")


class _RefusedError(Exception):
    """Carries a `ConfigError` through tyro, which would print a `ValueError` in a box under the name of the class."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(error)
        self.error = error


def parse(
    config: type[Config], arguments: Sequence[str], *, prog: str, description: str, default: Config | None = None
) -> Config:
    """Returns the config that a command line describes. Exits after it has printed the help, or an error of syntax.

    Args:
        config: A dataclass whose fields have docstrings. The fields become the options, the docstrings their help.
        arguments: The arguments after the command.
        prog: The command, as the help shows it.
        description: First part of the help, to be wrapped by `fill`.
        default: The values of the options that are not given; None: the defaults of the dataclass.

    Raises:
        ConfigError: The dataclass refuses a value, or a combination of values.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_describe_dataclass)
    # Printed here, because tyro joins the lines of a description and does not wrap the result.
    if {"-h", "--help"} & set(arguments):
        print(fill(description), end="\n\n")
    try:
        with registry:
            if default is None:
                return tyro.cli(config, prog=prog, description="", args=arguments)
            return tyro.cli(config, prog=prog, description="", default=default, args=arguments)
    except _RefusedError as refused:
        raise refused.error from None


def fill(text: str) -> str:
    """Wraps a text to the terminal's width, each paragraph by itself.

    An empty line ends a paragraph. A line that is indented more than the first one is not joined with others; if it is
    too long, its further lines are indented more.
    """
    width = max(40, shutil.get_terminal_size().columns)
    paragraphs: list[str] = []
    for block in inspect.cleandoc(text).split("\n\n"):
        lines: list[str] = []
        for line in block.splitlines():
            if lines and not line.startswith(" ") and not lines[-1].startswith(" "):
                lines[-1] += f" {line}"
            else:
                lines.append(line)
        paragraphs.append("\n".join(_fill_line(line, width) for line in lines))
    return "\n\n".join(paragraphs)


def _fill_line(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    further = f"{indent}  " if indent else ""
    return textwrap.fill(
        line.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def field_docs(config: type) -> dict[str, str]:
    """Returns the docstring of each field of a dataclass, from its source, as one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101
    return {
        ast.unparse(field.target): " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _describe_dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Returns the description of a dataclass for tyro. Without it, tyro keeps all line breaks of the docstrings."""
    if not dataclasses.is_dataclass(info.type):
        return None
    docs, types = field_docs(info.type), typing.get_type_hints(info.type, include_extras=True)
    fields = [
        StructFieldSpec(
            name=field.name,
            type=types[field.name],
            default=_default(field, info.default),
            helptext=docs.get(field.name),
        )
        for field in dataclasses.fields(info.type)
    ]
    return StructConstructorSpec(instantiate=_refusing(info.type), fields=tuple(fields))


def _refusing(config: type) -> Callable[..., Any]:
    """Returns a function that makes a dataclass of its fields, and raises its `ConfigError` in a `_RefusedError`."""

    def make(**values: Any) -> Any:
        try:
            return config(**values)
        except ConfigError as error:
            raise _RefusedError(error) from error

    return make


def _default(field: dataclasses.Field[Any], instance: object) -> Any:
    """Returns a field's value in an instance of its dataclass; without an instance, the field's own default."""
    if dataclasses.is_dataclass(instance):
        return getattr(instance, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    return tyro.MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()
