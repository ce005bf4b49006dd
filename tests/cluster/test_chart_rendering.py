"""What the chart renders to, by the real helm; no cluster needed."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "rollbook"

# Everything that is off by default, turned on.
EVERYTHING = {
    "networkPolicy": {"enabled": True, "clients": [{"namespaceSelector": {}}]},
    "registry": {
        "persistence": {"enabled": True, "storageClass": "fast"},
        "serviceMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
        "priorityClassName": "important",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "podLabels": {"team": "platform"},
        "podAnnotations": {"note": "true"},
        "extraArgs": ["--log-level=debug"],
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    },
    "operator": {"podMonitor": {"enabled": True, "interval": "15s"}},
    "webhook": {"podMonitor": {"enabled": True}},
    "imagePullSecrets": ["first", "second"],
    "global": {"imageRegistry": "registry.example.com:5000", "imagePullSecrets": ["first"]},
    "commonLabels": {"cost-centre": "42"},
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}}
    ],
}


def find_helm() -> str | None:
    """On the PATH, or where the tests' own cluster keeps its programs."""
    cache = Path(os.environ.get("ROLLBOOK_CACHE") or Path.home() / ".cache" / "rollbook")
    kept = [path for depth in ("*", "*/*") for path in cache.glob(f"{depth}/bin/helm")]
    newest = max(kept, key=lambda path: path.stat().st_mtime, default=None)
    return shutil.which("helm") or (None if newest is None else str(newest))


@pytest.fixture(scope="module")
def helm(request, tmp_path_factory):
    program = find_helm()
    if program is None:
        # It comes with the test cluster, if there can be one here.
        with contextlib.suppress(pytest.FixtureLookupError):
            request.getfixturevalue("cluster")
        program = find_helm()
    if program is None:
        pytest.skip("helm is neither on the PATH nor among the programs of the test cluster")
    home = tmp_path_factory.mktemp("helm")
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(home / "none")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=60, env=env
        )

    return run


@pytest.fixture
def render(helm, tmp_path):
    def rendered(values: dict[str, Any] | None = None, *, namespace="rollbook", name="rollbook", more=()):
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values or {}))
        return helm(
            *("template", name, str(CHART), "--namespace", namespace, "--kube-version", "1.30.0"),
            *("--values", str(file), *more),
        )

    return rendered


@pytest.fixture
def objects(render):
    def parsed(values: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, dict[str, Any]]:
        done = render(values, **kwargs)
        assert done.returncode == 0, done.stderr
        found: dict[str, dict[str, Any]] = {}
        for document in yaml.load_all(done.stdout, Loader=Strict):
            if document is not None:
                key = f"{document['kind']}/{document['metadata']['name']}"
                assert key not in found, f"{key} is rendered twice"
                found[key] = document
        return found

    return parsed


class Strict(yaml.SafeLoader):
    """Refuses what YAML readers silently resolve: the same key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is given twice: {keys} {node.start_mark}"
        return super().construct_mapping(node, deep=deep)


def pod_specs(objects):
    for key, item in objects.items():
        if item["kind"] == "Pod":
            yield key, item["spec"]
        elif "template" in item.get("spec", {}):
            yield key, item["spec"]["template"]["spec"]


def containers(objects):
    for key, spec in pod_specs(objects):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield key, spec, container


def rules(objects):
    for key, item in objects.items():
        if item["kind"] in {"Role", "ClusterRole"}:
            for rule in item["rules"]:
                yield key, item["kind"], rule


@pytest.fixture(params=[{}, EVERYTHING], ids=["defaults", "everything"])
def any_objects(request, objects):
    return objects(request.param)


def test_lint_finds_nothing(helm):
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_the_defaults_install_all_parts_under_their_documented_names(objects):
    assert {key for key in objects() if not key.startswith(("Role", "ClusterRole", "ServiceAccount"))} == {
        "StatefulSet/rollbook-registry",
        "Deployment/rollbook-operator",
        "Deployment/rollbook-webhook",
        "Service/rollbook",
        "Service/rollbook-registry-peers",
        "Service/rollbook-webhook",
        "MutatingWebhookConfiguration/rollbook-webhook",
        "PodDisruptionBudget/rollbook-webhook",
        "Pod/rollbook-test",
    }


def test_every_container_is_restricted(any_objects):
    seen = 0
    for key, pod, container in containers(any_objects):
        seen += 1
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, key
        assert context["readOnlyRootFilesystem"] is True, key
        assert context["capabilities"] == {"drop": ["ALL"]}, key
        assert pod["securityContext"]["runAsNonRoot"] is True, key
        assert pod["securityContext"]["runAsUser"] == 65532, key
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, key
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}, key
    assert seen == 4


def test_no_pod_is_given_variables_for_services(any_objects):
    assert [key for key, spec in pod_specs(any_objects) if spec["enableServiceLinks"] is not False] == []


def test_every_part_has_probes_resources_and_a_grace_period(any_objects):
    for key, spec, container in containers(any_objects):
        assert container["resources"]["requests"], key
        assert container["resources"]["limits"]["memory"], key
        if not key.startswith("Pod/"):
            assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}, key
            assert spec["terminationGracePeriodSeconds"] > 0, key


def test_no_volume_is_mounted_that_is_not_there(any_objects):
    for key, spec, container in containers(any_objects):
        there = {volume["name"] for volume in spec.get("volumes", [])}
        templates = any_objects[key]["spec"].get("volumeClaimTemplates", [])
        there |= {template["metadata"]["name"] for template in templates}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= there, key


def test_rules_have_no_wildcards(any_objects):
    for key, _, rule in rules(any_objects):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], key


def test_nobody_may_read_secrets_across_the_cluster(any_objects):
    for key, kind, rule in rules(any_objects):
        if "secrets" in rule["resources"]:
            assert kind == "Role", key
            if set(rule["verbs"]) != {"create"}:  # which can't be limited to a name
                assert rule["resourceNames"] == ["rollbook-webhook-tls"], key


def test_only_the_webhook_may_change_its_own_configuration(any_objects):
    found = [(key, rule) for key, _, rule in rules(any_objects) if "mutating" in str(rule["resources"])]
    assert [(key, rule["resourceNames"]) for key, rule in found] == [
        ("ClusterRole/rollbook-webhook", ["rollbook-webhook"])
    ]


def test_accounts_are_bound_to_the_roles_of_their_own_part(any_objects):
    for key, item in any_objects.items():
        if item["kind"] in {"RoleBinding", "ClusterRoleBinding"}:
            (subject,) = item["subjects"]
            assert item["roleRef"]["name"] == subject["name"] == item["metadata"]["name"], key
            assert subject["namespace"] == "rollbook", key
            assert f"{item['roleRef']['kind']}/{item['roleRef']['name']}" in any_objects, key


def test_the_chart_ships_no_certificate(render):
    text = render(EVERYTHING).stdout
    documents = [document for document in yaml.safe_load_all(text) if document]
    assert "caBundle" not in json.dumps(documents)
    assert "Secret" not in [document["kind"] for document in documents]


def test_the_webhook_is_never_in_the_way(objects):
    configuration = objects()["MutatingWebhookConfiguration/rollbook-webhook"]
    (webhook,) = configuration["webhooks"]
    assert webhook["failurePolicy"] == "Ignore"
    assert webhook["timeoutSeconds"] == 3
    assert webhook["reinvocationPolicy"] == "IfNeeded"
    assert webhook["sideEffects"] == "None"
    (rule,) = webhook["rules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE"], ["pods"])
    assert "has(object.metadata.annotations)" in webhook["matchConditions"][0]["expression"]
    service = webhook["clientConfig"]["service"]
    assert (service["name"], service["namespace"], service["path"]) == (
        "rollbook-webhook",
        "rollbook",
        "/mutate",
    )


@pytest.mark.parametrize(
    ("namespace", "excluded"), [("platform", ["platform", "kube-system"]), ("default", ["kube-system"])]
)
def test_own_namespace_is_left_alone_unless_it_is_default(objects, namespace, excluded):
    (webhook,) = objects(namespace=namespace)["MutatingWebhookConfiguration/rollbook-webhook"]["webhooks"]
    assert webhook["namespaceSelector"]["matchExpressions"] == [
        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": excluded}
    ]


def test_without_webhook_nothing_of_it_remains(objects):
    assert [key for key in objects({"webhook": {"enabled": False}}) if "webhook" in key] == []


def test_services_select_the_pods_of_their_part_and_name_ports_that_they_have(any_objects):
    pods = {
        json.dumps(item["spec"]["selector"]["matchLabels"], sort_keys=True): item["spec"]["template"]
        for item in any_objects.values()
        if "template" in item.get("spec", {})
    }
    services = [item for item in any_objects.values() if item["kind"] == "Service"]
    assert len(services) == 3
    for service in services:
        template = pods[json.dumps(service["spec"]["selector"], sort_keys=True)]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_registry_knows_the_account_that_the_operator_has(objects):
    found = objects({"operator": {"serviceAccount": {"create": False, "name": "boss"}}}, namespace="platform")
    arguments = found["StatefulSet/rollbook-registry"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--operator-account=platform/boss" in arguments
    assert found["Deployment/rollbook-operator"]["spec"]["template"]["spec"]["serviceAccountName"] == "boss"


def test_an_operator_ends_before_the_next_one_starts(objects):
    assert objects()["Deployment/rollbook-operator"]["spec"]["strategy"] == {"type": "Recreate"}


def test_the_operator_may_have_the_lease_that_it_is_told_to_take(objects):
    found = objects(name="prod")
    (container,) = found["Deployment/prod-rollbook-operator"]["spec"]["template"]["spec"]["containers"]
    assert "--lease-name=prod-rollbook-operator" in container["args"]
    named = [rule["resourceNames"] for rule in found["Role/prod-rollbook-operator"]["rules"][1:]]
    assert named == [["prod-rollbook-operator"]]


def test_the_operators_token_is_for_the_registrys_audience(objects):
    found = objects({"audience": "other"})
    pod = found["Deployment/rollbook-operator"]["spec"]["template"]["spec"]
    (source,) = pod["volumes"][0]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "other"
    registry = found["StatefulSet/rollbook-registry"]["spec"]["template"]["spec"]["containers"][0]
    assert "--audience=other" in registry["args"]


def test_the_webhook_keeps_its_certificate_where_it_may(objects):
    found = objects(name="prod")
    arguments = found["Deployment/prod-rollbook-webhook"]["spec"]["template"]["spec"]["containers"][0]["args"]
    named = {
        "--secret-name": found["Role/prod-rollbook-webhook"]["rules"][1]["resourceNames"],
        "--configuration-name": found["ClusterRole/prod-rollbook-webhook"]["rules"][0]["resourceNames"],
    }
    for flag, (name,) in named.items():
        assert f"{flag}={name}" in arguments
    assert "MutatingWebhookConfiguration/prod-rollbook-webhook" in found


def test_sidecars_get_the_resources_that_the_values_say(objects):
    resources = {"requests": {"cpu": "5m", "memory": "32Mi"}, "limits": {"memory": "99Mi"}}
    webhook = objects({"sidecar": {"resources": resources}})["Deployment/rollbook-webhook"]
    (text,) = (
        argument.partition("=")[2]
        for argument in webhook["spec"]["template"]["spec"]["containers"][0]["args"]
        if argument.startswith("--sidecar-resources=")
    )
    assert json.loads(text) == resources


@pytest.mark.parametrize(
    ("key", "cli", "settings", "name"),
    [
        (
            "StatefulSet/rollbook-registry",
            "rollbook_registry.cli",
            "rollbook_registry.settings",
            "RegistrySettings",
        ),
        (
            "Deployment/rollbook-operator",
            "rollbook_operator.cli",
            "rollbook_operator.settings",
            "OperatorSettings",
        ),
        (
            "Deployment/rollbook-webhook",
            "rollbook_operator.webhook.cli",
            "rollbook_operator.webhook.settings",
            "WebhookSettings",
        ),
    ],
)
def test_each_part_accepts_its_arguments(any_objects, key, cli, settings, name):
    arguments = any_objects[key]["spec"]["template"]["spec"]["containers"][0]["args"]
    command = importlib.import_module(cli).main
    chosen = command.make_context("test", list(arguments)).params
    assert chosen.pop("config") is None
    getattr(importlib.import_module(settings), name)(**chosen)


def test_timings_reach_the_registry(objects):
    timings = {"beatInterval": "1s", "unhealthyAfter": "3s", "removeAfter": "6s"}
    registry = objects({"registry": timings})["StatefulSet/rollbook-registry"]
    arguments = registry["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--beat-interval=1s", "--unhealthy-after=3s", "--remove-after=6s"} <= set(arguments)


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "rollbook/registry:0.1.0"),
        ({"image": {"tag": "dev"}}, "rollbook/registry:dev"),
        ({"image": {"registry": "a.example:5000"}}, "a.example:5000/rollbook/registry:0.1.0"),
        (
            {"image": {"registry": "a.example"}, "global": {"imageRegistry": "b.example/x"}},
            "b.example/x/rollbook/registry:0.1.0",
        ),
        ({"image": {"tag": "dev"}, "registry": {"image": {"tag": "own"}}}, "rollbook/registry:own"),
        (
            {"image": {"tag": "dev"}, "registry": {"image": {"digest": f"sha256:{'0a' * 32}"}}},
            f"rollbook/registry@sha256:{'0a' * 32}",
        ),
    ],
)
def test_images_can_come_from_anywhere(objects, values, image):
    registry = objects(values)["StatefulSet/rollbook-registry"]["spec"]["template"]["spec"]
    assert registry["containers"][0]["image"] == image


def test_pull_secrets_are_given_once_each(objects):
    for key, spec in pod_specs(objects(EVERYTHING)):
        assert spec["imagePullSecrets"] == [{"name": "first"}, {"name": "second"}], key


def test_data_is_in_the_pod_unless_it_is_to_persist(objects):
    registry = objects()["StatefulSet/rollbook-registry"]["spec"]
    assert "volumeClaimTemplates" not in registry
    assert "emptyDir" in registry["template"]["spec"]["volumes"][0]
    registry = objects(EVERYTHING)["StatefulSet/rollbook-registry"]["spec"]
    (claim,) = registry["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert "data" not in [volume["name"] for volume in registry["template"]["spec"]["volumes"]]


def test_extra_arguments_come_last_so_that_they_win(objects):
    registry = objects(EVERYTHING)["StatefulSet/rollbook-registry"]["spec"]["template"]["spec"]
    assert registry["containers"][0]["args"][-1] == "--log-level=debug"


def test_an_upgrade_changes_no_name_and_no_selector(objects):
    def identity(found):
        kept = {}
        for key, item in found.items():
            spec = item.get("spec", {})
            kept[key] = (spec.get("selector"), spec.get("serviceName"), spec.get("clusterIP"))
        return kept

    before = identity(objects())
    after = identity(objects({"image": {"tag": "2.0.0"}, "commonLabels": {"new": "label"}}))
    assert after == before
    for selector, _, _ in before.values():
        assert "version" not in json.dumps(selector)


@pytest.mark.parametrize(
    ("name", "values", "fullname"),
    [
        ("rollbook", {}, "rollbook"),
        ("prod", {}, "prod-rollbook"),
        ("prod", {"nameOverride": "book"}, "prod-book"),
        ("prod", {"fullnameOverride": "registry-of-services"}, "registry-of-services"),
        ("a" * 50, {}, "a" * 42),
    ],
)
def test_names_come_from_the_release(objects, name, values, fullname):
    found = objects(values, name=name)
    assert f"Service/{fullname}" in found
    assert all(len(item["metadata"]["name"]) <= 63 for item in found.values())
    webhook = found[f"Deployment/{fullname}-webhook"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--sidecar-registry={fullname}.rollbook.svc:7848" in webhook


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"registry": {"replica": 1}}, r"/registry'.*'replica' not allowed"),
        ({"webhok": {}}, r"'webhok' not allowed"),
        ({"sidecar": {"image": {"name": "x"}}}, r"/sidecar/image'.*'name' not allowed"),
        ({"registry": {"replicas": "two"}}, r"/registry/replicas'.*got string, want integer"),
        ({"registry": {"beatInterval": 5}}, r"/registry/beatInterval'.*got number, want string"),
        ({"registry": {"beatInterval": "5 seconds"}}, r"/registry/beatInterval'.*does not match pattern"),
        ({"image": {"tag": 1.2}}, r"/image/tag'.*got number, want string"),
        ({"registry": {"auth": "off"}}, r"/registry/auth'"),
        ({"registry": {"podAnnotations": {"x": True}}}, r"/registry/podAnnotations/x'.*got boolean"),
        ({"registry": {"replicas": 3}}, r"registry\.replicas is more than 1: this version"),
        ({"operator": {"replicas": 2}}, r"operator\.replicas is more than 1: in this version"),
        (
            {"operator": {"serviceAccount": {"create": False}}},
            r"operator\.serviceAccount\.name must name an existing",
        ),
        ({"webhook": {"drainSeconds": 30}}, r"webhook\.terminationGracePeriodSeconds must be more than"),
    ],
)
def test_what_would_not_work_is_refused_by_name(render, values, complaint):
    done = render(values)
    assert done.returncode != 0
    assert re.search(complaint, done.stderr, re.DOTALL), done.stderr


def test_an_older_kubernetes_is_refused(render):
    done = render(more=("--kube-version", "1.29.9"))
    assert done.returncode != 0
    assert "requires kubeVersion: >=1.30.0-0" in done.stderr


@pytest.fixture
def notes(helm, tmp_path):
    """Render NOTES.txt, which helm itself only does for a cluster that it installs into."""

    def rendered(*more: str) -> str:
        chart = tmp_path / "rollbook"
        shutil.copytree(CHART, chart)
        shutil.move(chart / "templates" / "NOTES.txt", chart / "NOTES.txt")
        (chart / "templates" / "notes.yaml").write_text(
            '{kind: Notes, apiVersion: v1, text: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}}'
        )
        done = helm(
            *("template", "rollbook", str(chart), "--namespace", "platform", "--kube-version", "1.30.0"),
            *("--show-only", "templates/notes.yaml", *more),
        )
        assert done.returncode == 0, done.stderr
        return yaml.safe_load(done.stdout)["text"]

    return rendered


def test_the_notes_say_what_to_do_next(notes):
    text = notes()
    assert "kubectl -n platform wait pod" in text
    assert "curl localhost:8849/services/orders" in text
    assert "Pods in platform, kube-system get no sidecar." in text
    assert "WARNING" not in text


def test_the_notes_warn_of_an_open_registry(notes):
    assert "WARNING: registry.auth is none" in notes("--set", "registry.auth=none")
