"""``docs/settings.md`` is made from the code; running this file writes it anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollbook.settings import declared
from rollbook_operator.settings import OperatorSettings
from rollbook_operator.webhook.settings import WebhookSettings
from rollbook_registry.settings import RegistrySettings
from rollbook_sidecar.settings import Settings as SidecarSettings

PAGE = Path(__file__).parents[3] / "docs/settings.md"
PARTS = {
    "rollbook-registry": RegistrySettings,
    "rollbook-sidecar": SidecarSettings,
    "rollbook-operator": OperatorSettings,
    "rollbook-webhook": WebhookSettings,
}
VARIABLES = Path(__file__).parents[3] / "client/rollbook/variables.py"
HEAD = """# Settings

A setting is given by a flag (`--unhealthy-after 15s`), by an environment variable
(`ROLLBOOK_UNHEALTHY_AFTER=15s`) or by a line of a file (`unhealthy-after = "15s"`). Flags go before
variables, those before the file, and that before the default. Lengths of time are written with a unit
(`500ms`, `15s`, `2m`, `1h`) or as seconds.

**The file** is TOML and named by `--config FILE` or `ROLLBOOK_CONFIG`. Its keys are the flags without the
dashes in front; numbers and `true` or `false` are written as such, lists as `["a", "b"]` or `"a,b"`:

```toml
unhealthy-after = "10s"
remove-after = "20s"
max-connections = 5000
nacos-grpc = false
```

**What is not acceptable** ends the program with status 2 and one message that names the flag, or the file and
its key, and what is accepted. So does a key of the file that is no setting. A variable that begins with
`ROLLBOOK_` and is no setting of the program does so only if it is very much like one
(`ROLLBOOK_UNHEALTY_AFTER`); variables of the other programs never do, nor do those by which Kubernetes tells
a pod of its namespace's Services (`ROLLBOOK_PORT`, `ROLLBOOK_SERVICE_HOST`, `ROLLBOOK_PORT_7848_TCP_ADDR`).
Where such a one has a setting's very name (a Service `rollbook-http` makes
`ROLLBOOK_HTTP_PORT=tcp://10.96.0.7:80`), it is not taken for the setting.

This page is made from the code by `python tests/unit/docs/test_settings_page.py`; a test compares the two.
"""
COLUMNS = ("flag", "default", "unit", "accepted", "what it does", "formula", "danger")


def _default(item):
    if item.default is ...:
        return "required"
    if item.default in {None, ""} or item.default == ():
        return ""
    if item.meta.unit == "s":
        return f"`{item.default:g}s`"
    if isinstance(item.default, float):
        return f"`{item.default:g}`"
    if isinstance(item.default, bool):
        return f"`{str(item.default).lower()}`"
    return f"`{item.default}`"


def _accepted(item):
    meta = item.meta
    if meta.choices:
        return ", ".join(f"`{c}`" for c in meta.choices)
    if item.type is bool:
        return "`true`, `false`"
    if meta.minimum is not None and meta.maximum is not None:
        return f"{meta.minimum:.15g} to {meta.maximum:.15g}"
    return f"at least {meta.minimum:.15g}" if meta.minimum is not None else ""


def render():
    lines = [HEAD]
    for name, settings in PARTS.items():
        lines += [f"## {name}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for item in declared(settings):
            meta = item.meta
            cells = (
                f"`{item.flag}`",
                _default(item),
                meta.unit,
                _accepted(item),
                meta.help,
                meta.formula,
                meta.danger,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def render_variables():
    names = {item.variable for settings in PARTS.values() for item in declared(settings)}
    # The command line's own, and what every program has.
    names |= {"ROLLBOOK_AT", "ROLLBOOK_CONFIG"}
    lines = [
        '"""The variables that are settings of some program of Rollbook; made by ``test_settings_page.py``.',
        "",
        "A program knows no settings of the others, but must not take their variables for a slip of the pen.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import Final",
        "",
        "KNOWN: Final = frozenset(",
        "    {",
        *(f'        "{name}",' for name in sorted(names)),
        "    }",
        ")",
        "",
    ]
    return "\n".join(lines)


def test_the_page_says_what_the_code_does():
    assert PAGE.read_text() == render(), "run: python tests/unit/docs/test_settings_page.py"


def test_every_program_knows_the_variables_of_the_others():
    assert VARIABLES.read_text() == render_variables(), "run: python tests/unit/docs/test_settings_page.py"


@pytest.mark.parametrize("settings", PARTS.values(), ids=PARTS)
def test_every_setting_says_what_it_does_and_lengths_of_time_have_a_unit(settings):
    for item in declared(settings):
        assert item.meta.help.endswith((".", ")")), item.flag
        for said in (item.meta.formula, item.meta.danger):
            # Cells of one table, and sentences of one help text.
            assert not said or (said.endswith(".") and (said[0].isupper() or said[0] in "-'0123456789")), (
                item.flag
            )
            assert "\n" not in said
        if item.type is float and any(
            w in item.field for w in ("after", "interval", "timeout", "linger", "tick")
        ):
            assert item.meta.unit == "s", item.flag


if __name__ == "__main__":
    VARIABLES.write_text(render_variables())
    PAGE.write_text(render())
