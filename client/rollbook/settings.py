"""Settings: each timer, limit and default of a part, declared once.

A part's settings are one frozen dataclass whose fields come from :func:`setting`. From it follow the flags
(``--unhealthy-after``), the environment variables (``ROLLBOOK_UNHEALTHY_AFTER``), their checks and errors,
and the table in ``docs/settings.md`` (a test compares the two).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_type_hints

import click

from rollbook.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX: Final = "ROLLBOOK"
_META: Final = "rollbook.setting"

S = TypeVar("S")

_DURATION = re.compile(r"(?P<amount>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h)?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """What is said about one setting, next to its type and default."""

    help: str
    unit: str = ""
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
        if (low is not None and seconds < low) or (high is not None and seconds > high):
            bounds = f"from {low or 0:g} s" + (f" to {high:g} s" if high is not None else "")
            self.fail(f"{value!r}; accepted: {bounds}", param, ctx)
        return seconds


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
    def variable(self) -> str:
        """Its environment variable."""
        return f"{PREFIX}_{self.field.upper()}"

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
            return Duration(meta) if meta.unit == "s" else click.FloatRange(meta.minimum, meta.maximum)
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


def command(
    name: str,
    settings: type[S],
    *,
    summary: str,
    version: str,
) -> Callable[[Callable[[S], None]], click.Command]:
    """Make a console command that reads settings from flags and environment, and runs a function with them.

    A value that is not acceptable ends it with status 2 and one message naming the flag and what is accepted.
    A ``Problem`` from the settings' own checks (``__post_init__``) does the same.
    """

    def decorate(run: Callable[[S], None]) -> click.Command:
        @click.command(name, help=summary, context_settings={"max_content_width": 110})
        @click.version_option(version, prog_name=name)
        def cli(**values: Any) -> None:
            try:
                chosen = settings(**values)
            except Problem as problem:
                raise click.UsageError(problem.detail) from None
            run(chosen)

        for item in declared(settings):
            shown = item.default not in {..., None, ""} and item.default != ()
            text = item.meta.help + (f" Danger: {item.meta.danger}" if item.meta.danger else "")
            given: dict[str, Any] = {} if item.default is ... else {"default": item.default}
            click.option(
                item.flag,
                item.field,
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
