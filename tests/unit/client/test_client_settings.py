"""Settings: flags and environment from one declaration, and what is said about bad values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rollbook.problems import bad_value
from rollbook.settings import command, declared, parse_duration, setting


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("15s", 15.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("2.5", 2.5),
        (" 0s ", 0.0),
        ("1.5m", 90.0),
    ],
)
def test_a_duration_is_a_number_with_a_unit_or_plain_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "1 s", "1s2", "1e3", ".5", "1.", "inf", "nan", "1S"])
def test_what_is_no_duration_is_told_with_the_accepted_form(text):
    with pytest.raises(ValueError, match="accepted: a number with ms, s, m or h"):
        parse_duration(text)


@given(st.integers(0, 10**9), st.sampled_from(["ms", "s", "m", "h"]))
def test_durations_are_in_proportion_to_their_units(amount, unit):
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]
    assert parse_duration(f"{amount}{unit}") == pytest.approx(amount * factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    name: str = setting(..., "Must be given.")
    port: int = setting(80, "A port.", minimum=0, maximum=65535)
    wait: float = setting(5.0, "How long.", unit="s", minimum=1.0, maximum=60.0)
    share: float = setting(0.5, "How much.", minimum=0.0, maximum=1.0)
    mode: str = setting("a", "Which.", choices=("a", "b"), danger="b is worse.")
    items: tuple[str, ...] = setting((), "Several.")
    place: Path = setting(Path("x"), "Where.")
    loud: bool = setting(default=False, help="Whether.")

    def __post_init__(self):
        if self.name == self.mode:
            raise bad_value("--name", self.name, "anything but the mode")


@pytest.fixture
def run():
    def run(*arguments, **environment):
        seen = []
        program = command("sample", Sample, summary="A sample.", version="1.2.3")(seen.append)
        result = CliRunner().invoke(
            program, arguments, env={f"ROLLBOOK_{k}": v for k, v in environment.items()}
        )
        return result, (seen[0] if seen else None)

    return run


def test_nothing_said_gives_the_defaults(run):
    result, settings = run("--name", "n")
    assert result.exit_code == 0
    assert settings == Sample(name="n")


def test_flags_and_environment_say_the_same(run):
    flags = [
        "--name",
        "n",
        "--port",
        "1",
        "--wait",
        "2s",
        "--share",
        "0.25",
        "--mode",
        "b",
        "--items",
        "p,,q",
        "--place",
        "/y",
        "--loud",
        "true",
    ]
    by_flags = run(*flags)[1]
    by_environment = run(
        NAME="n", PORT="1", WAIT="2s", SHARE="0.25", MODE="b", ITEMS="p, q", PLACE="/y", LOUD="true"
    )[1]
    assert by_flags == by_environment
    assert by_flags == Sample(
        name="n", port=1, wait=2.0, share=0.25, mode="b", items=("p", "q"), place=Path("/y"), loud=True
    )


def test_a_flag_goes_before_the_environment(run):
    assert run("--port", "1", NAME="n", PORT="2")[1].port == 1


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("port", "65536", "0<=x<=65535"),
        ("port", "x", "integer"),
        ("wait", "0.5s", "from 1 s to 60 s"),
        ("wait", "2 weeks", "a number with ms, s, m or h"),
        ("share", "1.5", "0.0<=x<=1.0"),
        ("share", "nan", "a number"),
        ("mode", "c", "'a', 'b'"),
        ("loud", "perhaps", "boolean"),
    ],
)
def test_a_bad_value_names_the_flag_and_what_is_accepted_and_ends_with_status_2(run, field, value, accepted):
    by_flag, ran = run("--name", "n", f"--{field}", value)
    assert (by_flag.exit_code, ran) == (2, None)
    assert f"--{field}" in by_flag.output
    assert accepted in by_flag.output
    by_variable, ran = run("--name", "n", **{field.upper(): value})
    assert (by_variable.exit_code, ran) == (2, None)
    assert f"--{field}" in by_variable.output
    assert f"ROLLBOOK_{field.upper()}" in by_variable.output


def test_what_must_be_given_is_asked_for_by_flag_and_variable(run):
    result, _ = run()
    assert result.exit_code == 2
    assert "--name" in result.output
    assert "ROLLBOOK_NAME" in result.output


def test_a_check_of_several_settings_ends_with_status_2_too(run):
    result, ran = run("--name", "a")
    assert (result.exit_code, ran) == (2, None)
    assert "--name is 'a'; accepted: anything but the mode" in result.output


def test_an_unknown_flag_is_refused(run):
    result, ran = run("--name", "n", "--prot", "1")
    assert (result.exit_code, ran) == (2, None)
    assert "--port" in result.output


def test_help_tells_default_danger_and_variable(run):
    text = " ".join(run("--help")[0].output.split())
    assert "Danger: b is worse." in text
    assert "ROLLBOOK_WAIT" in text
    assert "default: 5.0" in text
    assert "1.2.3" in run("--version")[0].output


def test_every_setting_is_declared_with_flag_and_variable():
    port = next(d for d in declared(Sample) if d.field == "port")
    assert (port.flag, port.variable, port.default) == ("--port", "ROLLBOOK_PORT", 80)
    assert next(d for d in declared(Sample) if d.field == "name").default is ...
    assert isinstance(port.click_type, click.IntRange)
