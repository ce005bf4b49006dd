"""Settings from a file and from the environment, and what merely looks like one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rollbook.problems import Problem, bad_value
from rollbook.settings import command, declared, setting
from rollbook.sources import check_environment, is_service_link
from rollbook.variables import KNOWN
from rollbook_operator.settings import OperatorSettings
from rollbook_operator.webhook.settings import WebhookSettings
from rollbook_registry.settings import RegistrySettings
from rollbook_sidecar.settings import Settings as SidecarSettings

ROOT = Path(__file__).parents[3]
PARTS = (RegistrySettings, SidecarSettings, OperatorSettings, WebhookSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    name: str = setting("anybody", "Who.")
    http_port: int = setting(80, "A port.", minimum=0, maximum=65535)
    unhealthy_after: float = setting(5.0, "How long.", unit="s", minimum=1.0, maximum=60.0)
    share: float = setting(0.5, "How much.", minimum=0.0, maximum=1.0)
    mode: str = setting("a", "Which.", choices=("a", "b"))
    items: tuple[str, ...] = setting((), "Several.")
    place: Path | None = setting(None, "Where.")
    loud: bool = setting(default=False, help="Whether.")
    key: str = setting("", "What nobody may see.", secret=True, choices=("", "right"))

    def __post_init__(self):
        if self.name == "nobody":
            raise bad_value("--name", self.name, "somebody")


@pytest.fixture
def run(tmp_path):
    def run(*arguments, file=None, **environment):
        seen = []
        if file is not None:
            path = tmp_path / "rollbook.toml"
            path.write_text(file)
            arguments = ("--config", str(path), *arguments)
        program = command("sample", Sample, summary="A sample.", version="0")(seen.append)
        result = CliRunner().invoke(program, arguments, env=environment)
        text = " ".join(result.output.replace("│", " ").split())
        return result.exit_code, text, (seen[0] if seen else None)

    return run


WHOLE = """
name = "n"          # a comment
http-port = 1
unhealthy-after = "2s"
share = 0.25
mode = "b"
items = ["p", "q"]
place = "/y"
loud = true
"""


def test_a_file_says_the_same_as_flags(run):
    flags = (
        "--name n --http-port 1 --unhealthy-after 2s --share 0.25 --mode b --items p,q --place /y --loud true"
    )
    by_flags = run(*flags.split())[2]
    assert by_flags is not None
    assert run(file=WHOLE)[2] == by_flags
    assert run(file='unhealthy-after = 2\nitems = "p,q"')[2] == Sample(unhealthy_after=2.0, items=("p", "q"))


def test_flags_go_before_variables_before_the_file_before_the_default(run):
    said = {"file": "http-port = 3\nshare = 1"}
    assert run("--http-port", "1", ROLLBOOK_HTTP_PORT="2", **said)[2].http_port == 1
    assert run(ROLLBOOK_HTTP_PORT="2", **said)[2] == Sample(http_port=2, share=1.0)
    assert run(**said)[2] == Sample(http_port=3, share=1.0)


def test_the_environment_may_name_the_file(run, tmp_path):
    (tmp_path / "c.toml").write_text("http-port = 3")
    assert run(ROLLBOOK_CONFIG=str(tmp_path / "c.toml"))[2].http_port == 3


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ("http-port = 65536", "http-port", "65536; accepted: a whole number, from 0 to 65535"),
        ('http-port = "80"', "http-port", "'80'; accepted: a whole number, from 0 to 65535"),
        ("http-port = true", "http-port", "True; accepted: a whole number"),
        ("http-port = 80.0", "http-port", "80.0; accepted: a whole number"),
        ("http-port = 1979-05-27", "http-port", "accepted: a whole number"),
        ('unhealthy-after = "soon"', "unhealthy-after", "accepted: a length of time such as 500ms, 15s, 2m"),
        ("unhealthy-after = 0.5", "unhealthy-after", "from 1 to 60 s"),
        ("unhealthy-after = nan", "unhealthy-after", "from 1 to 60 s"),
        ("share = 1.5", "share", "1.5; accepted: a number, from 0 to 1"),
        ("share = nan", "share", "accepted: a number, from 0 to 1"),
        ('share = "1"', "share", "'1'; accepted: a number"),
        ('mode = "c"', "mode", "'c'; accepted: a or b"),
        ('loud = "yes"', "loud", "'yes'; accepted: true or false"),
        ("loud = 1", "loud", "1; accepted: true or false"),
        ("items = [1]", "items", "accepted: a list of texts"),
        ("name = 1", "name", "1; accepted: a text"),
        ("place = []", "place", "accepted: a text"),
        ('key = "wrong"', "key", "(not shown); accepted"),
        ("unhealthy_after = 5", "unhealthy_after", "no setting; did you mean unhealthy-after?"),
        ("http-prot = 5", "http-prot", "no setting; did you mean http-port?"),
        ("HTTP-PORT = 5", "HTTP-PORT", "no setting; did you mean http-port?"),
        ("zzz = 5", "zzz", "no setting; accepted: http-port, items, key"),
        ("[name]\nx = 1", "name", "accepted: a text"),
        ("[registry]\nname = 1", "registry", "no setting"),
        ("config = 'x'", "config", "no setting"),
    ],
)
def test_what_a_file_may_not_say_ends_with_status_2_naming_file_key_and_what_is_accepted(
    run, line, key, said
):
    status, text, settings = run(file=line)
    assert (status, settings) == (2, None)
    assert f"rollbook.toml: {key} is" in text
    assert said in text


@pytest.mark.parametrize("text", ["http-port", "http-port = 1\nhttp-port = 2", "= 1", "\x00"])
def test_what_is_no_toml_is_told_with_the_place(run, text):
    status, said, _ = run(file=text)
    assert status == 2
    assert "rollbook.toml is no TOML" in said
    assert "line" in said


def test_bytes_that_are_no_text_are_told_too(run, tmp_path):
    (tmp_path / "c").write_bytes(b'name = "\xff"')
    status, said, _ = run("--config", str(tmp_path / "c"))
    assert (status, "is no TOML" in said) == (2, True)


def test_a_file_that_is_not_there_is_named(run, tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        status, said, settings = run("--config", str(path))
        assert (status, settings) == (2, None)
        assert path.name in said
        assert "cannot be read" in said


def test_a_check_of_what_goes_together_says_where_the_value_came_from(run):
    assert "--name comes from" not in run("--name", "nobody")[1]
    assert "(--name comes from ROLLBOOK_NAME)" in run(ROLLBOOK_NAME="nobody")[1]
    said = run(file='name = "nobody"')[1]
    assert "--name is 'nobody'; accepted: somebody" in said
    assert "rollbook.toml)" in said


# --- the environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("ROLLBOOK_UNHEALTY_AFTER", "ROLLBOOK_UNHEALTHY_AFTER"),
        ("ROLLBOOK_UNHEALTHYAFTER", "ROLLBOOK_UNHEALTHY_AFTER"),
        ("ROLLBOOK_HTTP_PROT", "ROLLBOOK_HTTP_PORT"),
        ("ROLLBOOK_HTP_PORT", "ROLLBOOK_HTTP_PORT"),
        ("ROLLBOOK_http_port", "ROLLBOOK_HTTP_PORT"),
        ("ROLLBOOK_CONFG", "ROLLBOOK_CONFIG"),
    ],
)
def test_a_slip_of_the_pen_in_a_variable_fails_naming_what_was_meant(run, variable, meant):
    status, text, settings = run(**{variable: "7"})
    assert (status, settings) == (2, None)
    assert f"{variable} in the environment is no setting; did you mean {meant}?" in text


def test_what_is_quite_different_is_somebody_elses(run):
    assert run(ROLLBOOK_CACHE="/x", ROLLBOOK_X="1", ROLLBOOK_="", ROLLBOK_HTTP_PORT="1")[0] == 0


def links(service: str, *ports: tuple[str, int], address: str = "10.96.0.7") -> dict[str, str]:
    """What a kubelet puts into pods for a Service."""
    prefix = service.upper().replace("-", "_")
    first = ports[0][1]
    found = {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(first),
        f"{prefix}_PORT": f"tcp://{address}:{first}",
    }
    for name, port in ports:
        found[f"{prefix}_SERVICE_PORT_{name.upper().replace('-', '_')}"] = str(port)
        link = f"{prefix}_PORT_{port}_TCP"
        found |= {
            link: f"tcp://{address}:{port}",
            f"{link}_PROTO": "tcp",
            f"{link}_PORT": str(port),
            f"{link}_ADDR": address,
        }
    return found


def chart_services() -> dict[str, list[tuple[str, int]]]:
    """The Services of the chart, of a release named rollbook, with their ports."""
    found = {}
    for path in sorted((ROOT / "charts/rollbook/templates").glob("*-service.yaml")):
        for part in path.read_text().split("\n---\n"):
            name = re.search(r"^  name: \{\{ [^}]* \}\}(.*)$", part, re.MULTILINE)[1]
            ports = re.findall(r"- name: (\S+)\n\s+port: (\d+)", part)
            found[f"rollbook{name}"] = [(n, int(p)) for n, p in ports]
    return found


@pytest.mark.parametrize("settings", PARTS, ids=lambda s: s.__name__)
def test_no_services_link_fails_any_program(settings):
    services = chart_services()
    assert services["rollbook"] == [("http", 8848), ("grpc", 9848), ("session", 7848)]
    assert services["rollbook-webhook"] == [("https", 443)]
    assert "rollbook-registry-peers" in services
    own = [item.variable for item in declared(settings)]
    # Releases may have other names, and so may Services of the user's that begin alike.
    services |= {"rollbook-registry": services["rollbook"], "rollbook-2": services["rollbook"]}
    for name in [*services, *(v.removesuffix("_PORT").lower().replace("_", "-") for v in own if "PORT" in v)]:
        for address in ("10.96.0.7", "fd00:10:96::7"):
            check_environment(links(name, *services.get(name, services["rollbook"]), address=address), own)


@pytest.mark.parametrize("settings", PARTS, ids=lambda s: s.__name__)
def test_no_setting_of_another_program_and_no_variable_of_the_tests_fails_any(settings):
    own = [item.variable for item in declared(settings)]
    check_environment(dict.fromkeys(KNOWN, "x"), own)
    named = set()
    for folder in ("tests/cluster", "benchmarks", "demo", "docs", "operator", "client", "charts"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in {".py", ".sh", ".yaml", ".md"} and path != ROOT / "docs/settings.md":
                named |= set(re.findall(r"\bROLLBOOK_[A-Z0-9_]*[A-Z0-9]\b", path.read_text()))
    assert {"ROLLBOOK_CACHE", "ROLLBOOK_KEEP_CLUSTER"} <= named
    # Pages show links by their names; with a link's value they pass, as the test above has it.
    named = {name for name in named if not re.search(r"_(PORT|SERVICE_HOST|SERVICE_PORT)(_|$)", name)}
    check_environment(dict.fromkeys(named, "x"), own)


def test_a_link_with_a_settings_very_name_is_not_taken_for_the_setting(run):
    shadowed = links("rollbook-http", ("http", 80))
    assert shadowed["ROLLBOOK_HTTP_PORT"] == "tcp://10.96.0.7:80"
    assert run(**shadowed)[2] == Sample()
    assert run(file="http-port = 3", **shadowed)[2].http_port == 3
    # A number is no link.
    assert run(ROLLBOOK_HTTP_PORT="81")[2].http_port == 81


@given(st.text(alphabet="ABHTPRSOUN_-0", max_size=20), st.sampled_from(["1", "x", "", "tcp://1.2.3.4:5"]))
def test_any_variable_is_let_pass_or_named_with_a_setting(name, value):
    own = [item.variable for item in declared(Sample)]
    variable = f"ROLLBOOK_{name}"
    refused = None
    try:
        check_environment({variable: value}, own)
    except Problem as problem:
        refused = problem
    if refused is not None:
        assert refused.field == variable
        assert refused.accepted in own
        assert variable not in KNOWN
        assert not is_service_link(variable, value)
