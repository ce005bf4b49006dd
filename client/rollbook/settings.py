"""Settings: each timer, limit and default of a part, declared once.

A part's settings are one frozen dataclass whose fields come from :func:`setting`. From it follow the flags
(``--unhealthy-after``), the environment variables (``ROLLBOOK_UNHEALTHY_AFTER``), the keys of a settings
file (``unhealthy-after``), their checks and errors, and the table in ``docs/settings.md`` (a test compares
the two). Flags go before variables, those before the file, and that before the default.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_type_hints

import click
from click.core import ParameterSource

from rollbook import sources
from rollbook.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX: Final = sources.PREFIX
_META: Final = "rollbook.setting"

S = TypeVar("S")

_DURATION = re.compile(r"(?P<amount>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h)?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """What is said about one setting, next to its type and default.

    Attributes:
        help: what it does, in a sentence.
        unit: what its number counts; ``s`` makes it a length of time.
        formula: how to choose it from other settings or from what there is, if there is such a rule.
        danger: what goes wrong with a careless value.
        choices: the only values, if they can be told.
        minimum: the least value.
        maximum: the greatest value.
        secret: whether its value must not be shown.
    """

    help: str
    unit: str = ""
    formula: str = ""
    danger: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    secret: bool = False


def setting(default: Any, help: str, **meta: Any) -> Any:  # noqa: A002  # click's and argparse's word for it
    """Declare a setting: a dataclass field.

    Args:
        default: its value when nobody says otherwise; ``...`` if it must be given.
        help: one sentence, for ``--help`` and the docs.
        meta: see :class:`Meta`.
    """
    info = {_META: Meta(help=help, **meta)}
    if default is ...:
        return dataclasses.field(metadata=info)
    return dataclasses.field(default=default, metadata=info)


def parse_duration(text: str) -> float:
    """Read ``500ms``, ``15s``, ``2m``, ``1h`` or plain seconds.

    Raises:
        ValueError: it is none of these.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r}; accepted: a number with ms, s, m or h, such as 500ms, 15s, 2m")
    return float(found["amount"]) * _SECONDS[found["unit"]]


class Duration(click.ParamType[float]):
    """A length of time, in seconds."""

    name = "duration"

    def __init__(self, meta: Meta) -> None:
        self._meta = meta

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, and hold it against the bounds."""
        try:
            seconds = parse_duration(value) if isinstance(value, str) else float(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        low, high = self._meta.minimum, self._meta.maximum
        if (
            math.isnan(seconds)
            or (low is not None and seconds < low)
            or (high is not None and seconds > high)
        ):
            bounds = f"from {low or 0:g} s" + (f" to {high:g} s" if high is not None else "")
            self.fail(f"{value!r}; accepted: {bounds}", param, ctx)
        return seconds


class Number(click.FloatRange):
    """A number within bounds; "nan" is none, which compares with nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it, and hold it against the bounds."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r}; accepted: a number", param, ctx)
        return number


class Items(click.ParamType[tuple[str, ...]]):
    """A list, separated by commas."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split it."""
        del param, ctx
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


@dataclasses.dataclass(frozen=True)
class Declared:
    """A setting as it was declared."""

    field: str
    type: Any
    default: Any
    meta: Meta

    @property
    def flag(self) -> str:
        """Its flag."""
        return f"--{self.field.replace('_', '-')}"

    @property
    def key(self) -> str:
        """Its key in a settings file."""
        return self.field.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"{PREFIX}{self.field.upper()}"

    @property
    def accepted(self) -> str:
        """What it may be, for people."""
        meta = self.meta
        if meta.choices:
            return " or ".join(meta.choices)
        if self.type in {int, float}:
            what = {int: "a whole number", float: "a number"}[self.type]
            if meta.unit == "s":
                what = "a length of time such as 500ms, 15s, 2m"
            unit = f" {meta.unit}" if meta.unit else ""
            if meta.minimum is not None and meta.maximum is not None:
                return f"{what}, from {meta.minimum:.15g} to {meta.maximum:.15g}{unit}"
            return what if meta.minimum is None else f"{what}, at least {meta.minimum:.15g}{unit}"
        named: dict[Any, str] = {bool: "true or false", tuple[str, ...]: "a list of texts"}
        return named.get(self.type, "a text")

    @property
    def click_type(self) -> click.ParamType[Any] | type:
        """How its value is read."""
        meta = self.meta
        if meta.choices:
            return click.Choice(meta.choices)
        if self.type is int:
            low = None if meta.minimum is None else int(meta.minimum)
            return click.IntRange(low, None if meta.maximum is None else int(meta.maximum))
        if self.type is float:
            return Duration(meta) if meta.unit == "s" else Number(meta.minimum, meta.maximum)
        simple: dict[Any, click.ParamType[Any]] = {
            tuple[str, ...]: Items(),
            Path: click.Path(path_type=Path),
            Path | None: click.Path(path_type=Path),
            bool: click.BOOL,
        }
        return simple.get(self.type, click.STRING)


def declared(settings: type[Any]) -> list[Declared]:
    """List a part's settings, in order."""
    hints = get_type_hints(settings)
    result = []
    for field in dataclasses.fields(settings):
        default = ... if field.default is dataclasses.MISSING else field.default
        result.append(Declared(field.name, hints[field.name], default, field.metadata[_META]))
    return result


class _Option(click.Option):
    """An option for which a Service's link in the environment is no value (see :mod:`rollbook.sources`)."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Read its variable."""
        value = super().resolve_envvar_value(ctx)
        if value is not None and sources.is_service_link(str(self.envvar), value):
            return None
        return value


def _in_file(item: Declared, value: object) -> object:
    """Check a value that a settings file gives.

    Raises:
        ValueError: it isn't acceptable; the text says what is.
    """
    shown = "(not shown)" if item.meta.secret else repr(value)
    wrong = ValueError(f"{shown}; accepted: {item.accepted}")
    kinds: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), tuple[str, ...]: (list, str)}
    kinds[float] = (int, float, str) if item.meta.unit == "s" else (int, float)
    # bool is an int to Python, not to people.
    if isinstance(value, bool) is not (item.type is bool) or not isinstance(
        value, kinds.get(item.type, (str,))
    ):
        raise wrong
    if isinstance(value, list):
        if not all(isinstance(part, str) for part in value):
            raise wrong
        value = tuple(value)
    reader = item.click_type
    try:
        return reader.convert(value, None, None) if isinstance(reader, click.ParamType) else value
    except click.BadParameter:
        raise wrong from None


def _configure(items: list[Declared]) -> Callable[[click.Context, click.Parameter, Path | None], Path | None]:
    def read(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
        keys = {item.key: item for item in items}
        try:
            sources.check_environment(os.environ, [*(item.variable for item in items), f"{PREFIX}CONFIG"])
            if path is not None:
                found = sources.read_file(path, list(keys))
                context.default_map = {}
                for key, value in found.items():
                    try:
                        context.default_map[keys[key].field] = _in_file(keys[key], value)
                    except ValueError as error:
                        raise Problem("bad_value", f"{path}: {key} is {error}", field=key) from None
        except Problem as problem:
            raise click.UsageError(problem.detail) from None
        return path

    return read


def _told(context: click.Context, items: list[Declared], problem: Problem) -> str:
    """Say where the value that a check complains of came from, if it was no flag."""
    for item in items:
        if item.flag == problem.field:
            match context.get_parameter_source(item.field):
                case ParameterSource.ENVIRONMENT:
                    return f"{problem.detail} ({item.flag} comes from {item.variable})"
                case ParameterSource.DEFAULT_MAP:
                    return f"{problem.detail} ({item.flag} comes from {context.params['config']})"
                case _:
                    break
    return problem.detail


def command(
    name: str,
    settings: type[S],
    *,
    summary: str,
    version: str,
) -> Callable[[Callable[[S], None]], click.Command]:
    """Make a console command that reads settings from wherever they are given, and runs a function with them.

    A value that is not acceptable ends it with status 2 and one message naming the flag (or the file and its
    key) and what is accepted. A ``Problem`` from the settings' own checks (``__post_init__``) does the same,
    and so do keys of the file and variables that look like a setting but are none.
    """
    items = declared(settings)

    def decorate(run: Callable[[S], None]) -> click.Command:
        @click.command(name, help=summary, context_settings={"max_content_width": 110})
        @click.version_option(version, prog_name=name)
        @click.pass_context
        def cli(context: click.Context, /, **values: Any) -> None:
            del values["config"]
            try:
                chosen = settings(**values)
            except Problem as problem:
                raise click.UsageError(_told(context, items, problem)) from None
            run(chosen)

        click.option(
            "--config",
            type=click.Path(path_type=Path),
            envvar=f"{PREFIX}CONFIG",
            show_envvar=True,
            is_eager=True,
            callback=_configure(items),
            help='A TOML file with settings, their keys as the flags: unhealthy-after = "15s". '
            "Flags and variables go before it.",
        )(cli)
        for item in items:
            shown = item.default not in {..., None, ""} and item.default != ()
            text = item.meta.help
            text += f" Formula: {item.meta.formula}" if item.meta.formula else ""
            text += f" Danger: {item.meta.danger}" if item.meta.danger else ""
            given: dict[str, Any] = {} if item.default is ... else {"default": item.default}
            click.option(
                item.flag,
                item.field,
                cls=_Option,
                type=item.click_type,
                envvar=item.variable,
                required=item.default is ...,
                show_default=shown,
                show_envvar=True,
                help=text,
                **given,
            )(cli)
        return cli

    return decorate
