from __future__ import annotations

import pytest
from click.testing import CliRunner

from rollbook.problems import Problem
from rollbook.settings import command
from rollbook_sidecar.cli import main
from rollbook_sidecar.settings import Settings

R = ("registry.example",)


def test_the_registry_alone_is_enough():
    settings = Settings(registry=R)
    assert (settings.lookup_host, settings.lookup_port) == ("127.0.0.1", 8849)
    assert (settings.hooks_address, settings.hooks_port) == ("127.0.0.1", 8850)
    assert settings.service == ""


def test_the_hooks_listen_on_the_pods_address_only_with_a_secret():
    assert Settings(registry=R, drain_secret="s").hooks_address == "0.0.0.0"
    assert Settings(registry=R, drain_secret="s", ip="fd00::7").hooks_address == "::"
    assert Settings(registry=R, drain_secret="s", hooks_host="127.0.0.1").hooks_address == "127.0.0.1"


@pytest.mark.parametrize(
    ("flag", "fields"),
    [
        ("--registry", {"registry": ()}),
        ("--registry", {"registry": ("http://x",)}),
        ("--registry", {"registry": ("x:99999",)}),
        ("--lookup-host", {"lookup_host": "not a host"}),
        ("--hooks-host", {"hooks_host": "1.2.3"}),
        ("--hooks-host", {"hooks_host": "0.0.0.0"}),
        ("--hooks-port", {"hooks_port": 8849}),
        ("--drain-secret", {"drain_secret": "line\nbreak"}),
        ("--drain-secret", {"drain_secret": " spaced "}),
        ("--drain-secret", {"drain_secret": "schlüssel"}),
        ("--service", {"ports": "8080"}),
        ("--ports", {"service": "orders"}),
        ("--ports", {"service": "orders", "ports": "eighty"}),
        ("--metadata", {"metadata": "{"}),
        ("--health-check", {"health_check": "ping"}),
        ("--instance-id", {"instance_id": "{nope}"}),
        ("--ip", {"ip": "0.0.0.0"}),
        ("--ip", {"ip": "10.0.0"}),
        ("--unhealthy-after", {"unhealthy_after": 40.0, "remove_after": 30.0}),
        ("--heartbeat-interval", {"heartbeat_interval": 0.0001}),
        ("--subscribe", {"subscribe": ("a b",)}),
        ("--subscribe", {"subscribe": ("a", "b"), "max_services": 1}),
        ("--namespace", {"service": "orders", "ports": "80", "namespace": "a/b"}),
        ("--service", {"service": "a/b", "ports": "80"}),
        ("--owner", {"service": "orders", "ports": "80", "owner": "a b"}),
        ("--metadata", {"service": "orders", "ports": "80", "metadata": "a=" + "x" * 9000}),
    ],
)
def test_what_does_not_go_together_is_refused_naming_the_flag(flag, fields):
    with pytest.raises(Problem) as refused:
        Settings(**{"registry": R, **fields})
    assert refused.value.field == flag
    assert refused.value.detail.startswith(flag)


def test_the_drain_secret_is_never_shown():
    with pytest.raises(Problem) as refused:
        Settings(registry=R, drain_secret="geheim\n")
    assert "geheim" not in refused.value.detail


def _read(arguments=(), env=None):
    found = []
    cli = command("rollbook-sidecar", Settings, summary="", version="0")(found.append)
    result = CliRunner().invoke(cli, list(arguments), env=env or {})
    assert result.exit_code == 0, result.output
    return found[0]


def test_flags_and_environment_say_the_same():
    environment = {
        "ROLLBOOK_REGISTRY": "a,b:7849",
        "ROLLBOOK_SERVICE": "orders",
        "ROLLBOOK_PORTS": "http=8080,grpc=9090",
        "ROLLBOOK_OWNER": "uid-1",
        "ROLLBOOK_IP": "10.1.2.3",
        "ROLLBOOK_POD_NAME": "orders-0",
        "ROLLBOOK_DRAIN_SECRET": "0123abcd",
        "ROLLBOOK_TOKEN_FILE": "/var/run/secrets/rollbook/token",
        "ROLLBOOK_DRAIN_TIMEOUT": "500ms",
        "ROLLBOOK_SUBSCRIBE": "stock, billing",
        "ROLLBOOK_CLUSTER": "",
    }
    arguments = [
        part
        for name, value in environment.items()
        if value
        for part in ("--" + name.removeprefix("ROLLBOOK_").lower().replace("_", "-"), value)
    ]
    settings = _read(env=environment)
    assert settings == _read(arguments)
    assert settings.registry == ("a", "b:7849")
    assert settings.subscribe == ("stock", "billing")
    assert settings.drain_timeout == 0.5
    assert settings.cluster == "DEFAULT"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--registry"),
        (["--registry", "r", "--ports", "8080"], "--service"),
        (["--registry", "r", "--linger", "soon"], "--linger"),
        (["--registry", "r", "--lookup-port", "70000"], "--lookup-port"),
        (["--registry", "r", "--max-services", "0"], "--max-services"),
    ],
)
def test_the_command_refuses_with_status_2(arguments, named):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert named in result.output
