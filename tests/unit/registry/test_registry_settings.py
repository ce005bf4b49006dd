"""The registry's settings: flags, environment, and what is said when they do not go together."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from rollbook.problems import Problem
from rollbook.settings import command, declared
from rollbook_registry.settings import RegistrySettings


@pytest.fixture
def run():
    def run(*arguments, **environment):
        seen = []
        program = command("rollbook-registry", RegistrySettings, summary="s", version="0")(seen.append)
        # Whatever the tests run in, they are not in a cluster unless one says so.
        outside = {"KUBERNETES_SERVICE_HOST": None}
        outside.update(dict.fromkeys(d.variable for d in declared(RegistrySettings)))
        result = CliRunner().invoke(program, arguments, env={**outside, **environment})
        return result, (seen[0] if seen else None)

    return run


def test_the_defaults_are_the_contracts(run):
    result, settings = run()
    assert result.exit_code == 0
    assert (settings.host, settings.http_port, settings.session_port) == ("127.0.0.1", 8848, 7848)
    assert (settings.grpc_port, settings.nacos_grpc) == (9848, True)
    assert (settings.beat_interval, settings.unhealthy_after, settings.remove_after) == (5.0, 15.0, 30.0)
    assert (settings.auth, settings.audience) == ("auto", "rollbook")
    assert not settings.needs_identity


def test_the_environment_says_the_same_as_flags(run):
    timings = ["--unhealthy-after", "2s", "--remove-after", "4s", "--beat-interval", "500ms"]
    by_flags = run(*timings, "--data-dir", "/d")[1]
    assert by_flags.unhealthy_after == 2.0
    by_environment = run(
        ROLLBOOK_UNHEALTHY_AFTER="2", ROLLBOOK_REMOVE_AFTER="4000ms", ROLLBOOK_BEAT_INTERVAL="0.5s",
        ROLLBOOK_DATA_DIR="/d",
    )[1]  # fmt: skip
    assert by_environment == by_flags


@pytest.mark.parametrize(
    ("flags", "flag", "accepted"),
    [
        (["--http-port", "70000"], "--http-port", "0<=x<=65535"),
        (["--grpc-port", "-1"], "--grpc-port", "0<=x<=65535"),
        (["--nacos-grpc", "perhaps"], "--nacos-grpc", "not a valid boolean"),
        (["--unhealthy-after", "soon"], "--unhealthy-after", "a number with ms, s, m or h"),
        (["--expiry-tick", "2s"], "--expiry-tick", "from 0.01 s to 1 s"),
        (["--auth", "perhaps"], "--auth", "'auto', 'kubernetes', 'none'"),
        (["--log-level", "loud"], "--log-level", "'debug'"),
        (["--max-entries", "0"], "--max-entries", "1<=x"),
        (["--operator-account", "operator"], "--operator-account", "namespace/name"),
        (["--unhealthy-after", "40s"], "--unhealthy-after", "at most --remove-after, which is 30.0"),
        (["--beat-interval", "15s"], "--beat-interval", "less than --unhealthy-after, which is 15.0"),
        (["--host", "0.0.0.0"], "--host", "a loopback address; or say --auth none"),
    ],
)
def test_a_bad_value_names_its_flag_and_ends_with_status_2(run, flags, flag, accepted):
    result, settings = run(*flags)
    assert (result.exit_code, settings) == (2, None)
    assert flag in result.output
    assert accepted in result.output


def test_a_bad_variable_is_named_too(run):
    result, _ = run(ROLLBOOK_HTTP_PORT="x")
    assert result.exit_code == 2
    assert "ROLLBOOK_HTTP_PORT" in result.output


@pytest.mark.parametrize(
    ("flags", "in_cluster", "needed"),
    [
        ([], True, True),
        (["--host", "0.0.0.0"], True, True),
        (["--auth", "none", "--host", "0.0.0.0"], True, False),
        (["--auth", "none", "--host", "0.0.0.0"], False, False),
        (["--auth", "kubernetes", "--host", "0.0.0.0"], False, True),
        (["--host", "::1"], False, False),
    ],
)
def test_in_a_cluster_or_when_told_so_an_identity_is_needed(run, monkeypatch, flags, in_cluster, needed):
    environment = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"} if in_cluster else {}
    result, settings = run(*flags, **environment)
    assert result.exit_code == 0, result.output
    if in_cluster:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    else:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert settings.needs_identity is needed


def test_settings_made_in_code_are_checked_alike():
    with pytest.raises(Problem) as refused:
        RegistrySettings(unhealthy_after=31.0)
    assert refused.value.field == "--unhealthy-after"


def test_every_setting_says_what_it_is_for():
    for setting in declared(RegistrySettings):
        assert setting.meta.help.endswith(".")
        # Kubernetes sets ROLLBOOK_PORT, ROLLBOOK_SERVICE_... and the like for Services of these names.
        assert not setting.variable.startswith(("ROLLBOOK_PORT", "ROLLBOOK_SERVICE_", "ROLLBOOK_REGISTRY_"))
