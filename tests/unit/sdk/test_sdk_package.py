"""The package: what it exports, what its types say to a user's program, and what importing it loads."""

from __future__ import annotations

import importlib
import importlib.resources
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rollbook
from rollbook import balance, events

HERE = Path(__file__).parent
PUBLIC = [rollbook, balance, events]


def test_types_hold_for_a_users_program(tmp_path):
    sources = Path(rollbook.__file__).parent.parent
    finished = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path),
            "--no-error-summary", str(HERE / "users_program.py"),
        ],
        env={"MYPYPATH": str(sources), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert finished.stdout + finished.stderr == ""
    assert importlib.resources.files("rollbook").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", rollbook.__all__)
def test_what_is_exported_is_there(name):
    assert getattr(rollbook, name) is not None


def test_what_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="Cleint"):
        rollbook.Cleint  # noqa: B018  # looking is what fails


def is_public(name, member):
    return not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))


def public_members():
    for module in PUBLIC:
        for name in getattr(module, "__all__", None) or [n for n in vars(module) if n[0].isupper()]:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value
            elif inspect.isclass(value) and value.__module__.startswith("rollbook"):
                yield f"{module.__name__}.{name}", value
                members = vars(value).items()
                yield from ((f"{module.__name__}.{name}.{n}", m) for n, m in members if is_public(n, m))


@pytest.mark.parametrize(
    ("name", "member"), list(public_members()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_is_public_says_what_it_is(name, member):
    text = inspect.getdoc(member)
    assert text
    assert text.splitlines()[0].strip()


def loaded_by(code):
    """The top-level packages that running some code loads."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


HEAVY = {"click", "structlog", "prometheus_client", "kopf", "grpc", "cryptography", "uvloop", "rich"}


def test_importing_the_sdk_loads_only_what_it_needs():
    assert not loaded_by("import rollbook") & (HEAVY | {"aiohttp", "xxhash", "asyncio"})
    assert not loaded_by("from rollbook import Client") & HEAVY


def test_every_module_can_be_imported_by_itself():
    for module in pkgutil.iter_modules(rollbook.__path__):
        importlib.import_module(f"rollbook.{module.name}")
