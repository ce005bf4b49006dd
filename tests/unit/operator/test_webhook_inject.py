"""What the webhook adds to a pod."""

import copy
import json

import pytest

from rollbook_operator.desired import sidecar_ports
from rollbook_operator.webhook.inject import SidecarSettings, inject

SETTINGS = SidecarSettings(
    image="rollbook/sidecar:dev",
    pull_policy="IfNotPresent",
    registry="rollbook.rollbook.svc:7848",
    audience="rollbook",
    resources={"requests": {"memory": "48Mi"}},
)


def apply(pod, patch):
    """Apply a JSON patch of which all operations are additions (RFC 6902, section 4.1)."""
    pod = copy.deepcopy(pod)
    for op in patch:
        assert op["op"] == "add"
        *parents, last = [p.replace("~1", "/").replace("~0", "~") for p in op["path"].split("/")[1:]]
        where = pod
        for part in parents:
            where = where[int(part)] if isinstance(where, list) else where[part]
        if isinstance(where, list):
            where.insert(len(where) if last == "-" else int(last), op["value"])
        else:
            where[last] = op["value"]
    return pod


def fresh(pod, **more):
    """A pod as it is created: no UID, no status, no node, no label of ours."""
    made = pod("orders-1", labels={"app": "x"}, **more)
    del made["status"], made["metadata"]["uid"], made["spec"]["nodeName"]
    return made


def sidecar_of(pod):
    return pod["spec"]["initContainers"][0]


def env_of(pod):
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in sidecar_of(pod)["env"]}


def test_an_annotated_pod_gets_sidecar_token_hooks_and_label(pod):
    made = fresh(pod)
    result = inject(made, SETTINGS, "s3cret")
    injected = apply(made, result.patch)
    assert (result.reason, result.warnings) == ("injected", [])
    assert injected["metadata"]["labels"] == {"app": "x", "rollbook.io/managed": "true"}
    sidecar = sidecar_of(injected)
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("rollbook-sidecar", "Always")
    assert sidecar["image"] == "rollbook/sidecar:dev"
    assert sidecar["resources"] == {"requests": {"memory": "48Mi"}}
    assert sidecar["startupProbe"]["httpGet"] == {"path": "/startup", "port": 8850}
    header = [{"name": "X-Rollbook-Drain", "value": "s3cret"}]
    assert sidecar["lifecycle"]["preStop"]["httpGet"] == {
        "path": "/drain/self",
        "port": 8850,
        "httpHeaders": header,
    }
    assert injected["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"] == {
        "path": "/drain/wait",
        "port": 8850,
        "httpHeaders": header,
    }
    (volume,) = injected["spec"]["volumes"]
    token = volume["projected"]["sources"][0]["serviceAccountToken"]
    assert (volume["name"], token["audience"], token["expirationSeconds"]) == (
        "rollbook-token",
        "rollbook",
        3600,
    )
    env = env_of(injected)
    assert env["ROLLBOOK_SERVICE"] == "orders"
    assert env["ROLLBOOK_PORTS"] == "8080"
    assert env["ROLLBOOK_REGISTRY"] == "rollbook.rollbook.svc:7848"
    assert env["ROLLBOOK_OWNER"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert env["ROLLBOOK_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert env["ROLLBOOK_DRAIN_SECRET"] == "s3cret"
    assert env["ROLLBOOK_TOKEN_FILE"] == "/var/run/secrets/rollbook/token"
    assert "ROLLBOOK_CLUSTER" not in env
    assert sidecar_ports(injected) == {8080}


def test_the_sidecar_satisfies_the_restricted_pod_security_standard(pod):
    made = fresh(pod)
    context = sidecar_of(apply(made, inject(made, SETTINGS, "s").patch))["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == 65532
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_injecting_again_changes_nothing_and_keeps_the_secret(pod):
    made = fresh(pod)
    once = apply(made, inject(made, SETTINGS, "first").patch)
    again = inject(once, SETTINGS, "second")
    assert (again.patch, again.reason) == ([], "present")


def test_a_container_that_a_later_webhook_added_gets_the_hook_with_the_same_secret(pod):
    made = fresh(pod)
    once = apply(made, inject(made, SETTINGS, "first").patch)
    once["spec"]["containers"].append({"name": "proxy"})
    twice = apply(once, inject(once, SETTINGS, "second").patch)
    hook = twice["spec"]["containers"][1]["lifecycle"]["preStop"]["httpGet"]
    assert hook["httpHeaders"] == [{"name": "X-Rollbook-Drain", "value": "first"}]
    assert len(twice["spec"]["initContainers"]) == 1
    assert len(twice["spec"]["volumes"]) == 1


def test_the_sidecar_comes_before_the_pods_own_init_containers(pod):
    made = fresh(pod, spec__initContainers=[{"name": "migrate"}], spec__volumes=[{"name": "data"}])
    injected = apply(made, inject(made, SETTINGS, "s").patch)
    assert [c["name"] for c in injected["spec"]["initContainers"]] == ["rollbook-sidecar", "migrate"]
    assert [v["name"] for v in injected["spec"]["volumes"]] == ["data", "rollbook-token"]


def test_the_users_own_prestop_is_respected_and_a_poststart_kept(pod):
    own = {"preStop": {"exec": {"command": ["bye"]}}}
    containers = [
        {"name": "a", "lifecycle": own},
        {"name": "b", "lifecycle": {"postStart": {"exec": {"command": ["hi"]}}}},
        {"name": "c"},
    ]
    made = fresh(pod, spec__containers=containers)
    a, b, c = apply(made, inject(made, SETTINGS, "s").patch)["spec"]["containers"]
    assert a["lifecycle"] == own
    assert b["lifecycle"].keys() == {"postStart", "preStop"}
    assert c["lifecycle"].keys() == {"preStop"}


@pytest.mark.parametrize(
    ("annotations", "reason", "labelled"),
    [
        ({}, "not_asked_for", False),
        ({"other.io/x": "y"}, "not_asked_for", False),
        ({"rollbook.io/register": "false"}, "not_asked_for", False),
        ({"rollbook.io/inject": "false"}, "not_asked_for", False),
        ({"rollbook.io/register": "true", "rollbook.io/inject": "false"}, "labelled", True),
    ],
)
def test_who_gets_no_sidecar(pod, annotations, reason, labelled):
    if annotations.get("rollbook.io/register") == "true":
        annotations = {**annotations, "rollbook.io/service": "orders", "rollbook.io/port": "80"}
    made = fresh(pod, annotations=annotations)
    result = inject(made, SETTINGS, "s")
    after = apply(made, result.patch)
    assert result.reason == reason
    assert "initContainers" not in after["spec"]
    assert ("rollbook.io/managed" in after["metadata"]["labels"]) is labelled


def test_a_host_network_pod_is_only_labelled_and_its_owner_is_told(pod):
    made = fresh(pod, spec__hostNetwork=True)
    result = inject(made, SETTINGS, "s")
    after = apply(made, result.patch)
    assert result.reason == "host_network"
    assert after["metadata"]["labels"]["rollbook.io/managed"] == "true"
    assert after["spec"] == made["spec"]
    assert "host's network" in result.warnings[0]


def test_a_pure_consumer_gets_a_sidecar_that_registers_nothing(pod):
    made = fresh(pod, annotations={"rollbook.io/inject": "true", "rollbook.io/subscribe": "orders, g@@stock"})
    after = apply(made, inject(made, SETTINGS, "s").patch)
    env = env_of(after)
    assert env["ROLLBOOK_SUBSCRIBE"] == "orders,g@@stock"
    assert not env.keys() & {"ROLLBOOK_SERVICE", "ROLLBOOK_PORTS", "ROLLBOOK_INSTANCE_ID"}
    assert "lifecycle" not in after["spec"]["containers"][0]
    assert sidecar_ports(after) == frozenset()


def test_bad_annotations_let_the_pod_through_with_a_warning_each(pod):
    annotations = {
        "rollbook.io/register": "true",
        "rollbook.io/service": "orders",
        "rollbook.io/port": "eighty",
        "rollbook.io/wieght": "2",
    }
    result = inject(fresh(pod, annotations=annotations), SETTINGS, "s")
    assert (result.patch, result.reason) == ([], "bad_annotation")
    port, unknown = result.warnings
    assert "rollbook.io/port is 'eighty'; accepted: a number from 1 to 65535" in port
    assert "did you mean rollbook.io/weight?" in unknown


def test_what_the_sidecar_would_refuse_is_not_injected(pod):
    """Right one by one, wrong together: with the port's name the metadata is too large."""
    annotations = {
        "rollbook.io/register": "true",
        "rollbook.io/service": "orders",
        "rollbook.io/port": "http=8080",
        "metadata.rollbook.io/big": "x" * 8189,
    }
    result = inject(fresh(pod, annotations=annotations), SETTINGS, "s")
    assert (result.patch, result.reason) == ([], "bad_annotation")
    assert "at most 8192 bytes" in result.warnings[0]


@pytest.mark.parametrize(
    ("grace", "drain", "linger"),
    [
        (None, "10000ms", "2000ms"),
        (15, "5000ms", "2000ms"),
        (3, "1000ms", "1000ms"),
        (600, "10000ms", "2000ms"),
    ],
)
def test_hook_times_follow_from_the_grace_period(pod, grace, drain, linger):
    made = fresh(pod, **({} if grace is None else {"spec__terminationGracePeriodSeconds": grace}))
    result = inject(made, SETTINGS, "s")
    env = env_of(apply(made, result.patch))
    assert (env["ROLLBOOK_DRAIN_TIMEOUT"], env["ROLLBOOK_LINGER"]) == (drain, linger)
    assert not result.warnings


def test_annotated_hook_times_count_and_are_warned_of_when_they_exceed_the_grace_period(pod):
    made = fresh(pod)
    made["metadata"]["annotations"] |= {"rollbook.io/drain-timeout": "29s", "rollbook.io/linger": "1500ms"}
    result = inject(made, SETTINGS, "s")
    env = env_of(apply(made, result.patch))
    assert (env["ROLLBOOK_DRAIN_TIMEOUT"], env["ROLLBOOK_LINGER"]) == ("29000ms", "1500ms")
    assert "30.5 s together, more than terminationGracePeriodSeconds, which is 30" in result.warnings[0]


def test_every_annotation_reaches_the_sidecar(pod):
    annotations = {
        "rollbook.io/register": "true",
        "rollbook.io/service": "orders",
        "rollbook.io/port": "http=http,grpc=9090",
        "rollbook.io/namespace": "prod",
        "rollbook.io/group": "G",
        "rollbook.io/cluster": "c1",
        "rollbook.io/weight": "2.5",
        "rollbook.io/instance-id": "{pod}/{node}/{port}",
        "rollbook.io/health-check": "http:/ready?x=$(HOME)",
        "rollbook.io/heartbeat-interval": "2s",
        "rollbook.io/unhealthy-after": "6s",
        "rollbook.io/remove-after": "1m",
        "metadata.rollbook.io/version": "2",
        "metadata.rollbook.io/price": "$$1",
    }

    made = fresh(pod, annotations=annotations)
    env = env_of(apply(made, inject(made, SETTINGS, "s").patch))
    assert env["ROLLBOOK_PORTS"] == "http=8080,grpc=9090"
    assert (env["ROLLBOOK_NAMESPACE"], env["ROLLBOOK_GROUP"], env["ROLLBOOK_CLUSTER"]) == ("prod", "G", "c1")
    assert env["ROLLBOOK_WEIGHT"] == "2.5"
    assert env["ROLLBOOK_INSTANCE_ID"] == "{pod}/{node}/{port}"
    assert env["ROLLBOOK_POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert env["ROLLBOOK_NODE_NAME"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert env["ROLLBOOK_HEALTH_CHECK"] == "http:/ready?x=$$(HOME)"
    assert env["ROLLBOOK_HEARTBEAT_INTERVAL"] == "2000ms"
    assert env["ROLLBOOK_UNHEALTHY_AFTER"] == "6000ms"
    assert env["ROLLBOOK_REMOVE_AFTER"] == "60000ms"
    assert json.loads(env["ROLLBOOK_METADATA"].replace("$$", "$")) == {"version": "2", "price": "$$1"}


def test_a_port_that_the_sidecar_needs_is_warned_of(pod):
    made = fresh(pod, spec__containers=[{"name": "app", "ports": [{"containerPort": 8849}]}])
    assert any("port 8849 is the sidecar's" in w for w in inject(made, SETTINGS, "s").warnings)


def test_a_container_of_that_name_that_is_not_ours_is_left_alone(pod):
    made = fresh(pod, spec__initContainers=[{"name": "rollbook-sidecar"}])
    result = inject(made, SETTINGS, "s")
    after = apply(made, result.patch)
    assert after["spec"] == made["spec"]
    assert "of its own" in result.warnings[0]
