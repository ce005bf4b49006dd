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
HEAD = """# Settings

Every flag has an environment variable: `--unhealthy-after` is `ROLLBOOK_UNHEALTHY_AFTER`. Flags win.
Lengths of time are written with a unit (`500ms`, `15s`, `2m`, `1h`) or as seconds. A value that is not
acceptable ends the program with status 2 and one message that names the flag and what is accepted.

This page is made from the code by `python tests/unit/docs/test_settings_page.py`; a test compares the two.
"""


def _default(item):
    if item.default is ...:
        return "required"
    if item.default in {None, ""} or item.default == ():
        return ""
    if item.meta.unit == "s":
        return f"`{item.default:g}s`"
    if isinstance(item.default, bool):
        return f"`{str(item.default).lower()}`"
    return f"`{item.default}`"


def _accepted(item):
    meta = item.meta
    if meta.choices:
        return ", ".join(f"`{c}`" for c in meta.choices)
    unit = f" {meta.unit}" if meta.unit else ""
    if meta.minimum is not None and meta.maximum is not None:
        return f"{meta.minimum:g} to {meta.maximum:g}{unit}"
    return f"at least {meta.minimum:g}{unit}" if meta.minimum is not None else ""


def render():
    lines = [HEAD]
    for name, settings in PARTS.items():
        lines += [f"## {name}", "", "| flag | default | accepted | what it does |", "|---|---|---|---|"]
        for item in declared(settings):
            text = item.meta.help + (f" **Danger:** {item.meta.danger}" if item.meta.danger else "")
            cells = (f"`{item.flag}`", _default(item), _accepted(item), text.replace("|", "\\|"))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def test_the_page_says_what_the_code_does():
    assert PAGE.read_text() == render(), "run: python tests/unit/docs/test_settings_page.py"


@pytest.mark.parametrize("settings", PARTS.values(), ids=PARTS)
def test_every_setting_says_what_it_does_and_lengths_of_time_have_a_unit(settings):
    for item in declared(settings):
        assert item.meta.help.endswith((".", ")")), item.flag
        if item.type is float and any(
            w in item.field for w in ("after", "interval", "timeout", "linger", "tick")
        ):
            assert item.meta.unit == "s", item.flag


if __name__ == "__main__":
    PAGE.write_text(render())
