"""The stage: applies manifests, reads what callers wrote down, waits for what must become true."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPTS = Path(__file__).parent
IMAGE = "rollbook/sidecar:dev"

SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def wait_until(condition: Callable[[], Any], *, what: str, seconds: float, every: float = 0.2) -> Any:
    """Return what a condition returns once that is true.

    Raises:
        AssertionError: it has not become true in time.
    """
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}; last: {value!r}")
        time.sleep(every)  # nothing announces this


@dataclasses.dataclass(frozen=True)
class Seen:
    """One state that a caller saw."""

    t: float
    stale: bool
    instances: dict[str, bool]


class Stage:
    """One namespace with its application and its callers."""

    def __init__(self, kubectl: Any, namespace: str, image: str = IMAGE) -> None:
        self.kubectl = kubectl
        self.namespace = namespace
        self.image = image
        scripts = {p.name: p.read_text() for p in (SCRIPTS / "orders.py", SCRIPTS / "recorder.py")}
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "scripts"},
                "data": scripts,
            }
        )

    # --- manifests -------------------------------------------------------------------------------------

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply manifests to the namespace."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("-n", self.namespace, "apply", "-f", "-", input=json.dumps(document))

    def _pod_spec(self, script: str, service: str, **more: Any) -> dict[str, Any]:
        container = {
            "name": "app",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", f"/scripts/{script}"],
            "env": [
                {"name": "SERVICE", "value": service},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "securityContext": SECURITY,
            "volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}],
            **more,
        }
        return {
            "securityContext": POD_SECURITY,
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": [{"name": "scripts", "configMap": {"name": "scripts"}}],
        }

    def orders(self, service: str, *, replicas: int = 3, labels: dict[str, str] | None = None) -> None:
        """Put a Deployment of the application on the stage, with nothing but annotations."""
        spec = self._pod_spec(
            "orders.py",
            service,
            ports=[{"name": "http", "containerPort": 8080}],
            readinessProbe={"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
        )
        self.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": service},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": {"app": service}},
                    "template": {
                        "metadata": {
                            "labels": {"app": service, **(labels or {})},
                            "annotations": {"rollbook.io/register": "true", "rollbook.io/port": "http"},
                        },
                        "spec": spec,
                    },
                },
            }
        )

    def caller(self, name: str, service: str) -> None:
        """Put a caller on the stage that writes down what its sidecar says of a service."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "annotations": {"rollbook.io/inject": "true"}},
                "spec": self._pod_spec("recorder.py", service),
            }
        )
        self.kubectl("-n", self.namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")

    def rolled_out(self, service: str, seconds: int = 120) -> None:
        """Wait for a Deployment's roll-out."""
        self.kubectl(
            "-n", self.namespace, "rollout", "status", f"deployment/{service}", f"--timeout={seconds}s"
        )

    # --- reading ---------------------------------------------------------------------------------------

    def pods(self, service: str) -> list[dict[str, Any]]:
        """All pods of the application that are not going."""
        found = self.kubectl.json("-n", self.namespace, "get", "pods", "-l", f"app={service}")["items"]
        return [p for p in found if not p["metadata"].get("deletionTimestamp")]

    def ips(self, service: str) -> set[str]:
        """The addresses of the application's pods."""
        return {p["status"]["podIP"] for p in self.pods(service)}

    def lines(self, pod: str, container: str = "app") -> list[dict[str, Any]]:
        """What a pod has written down."""
        text = self.kubectl("-n", self.namespace, "logs", pod, "-c", container)
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def seen(self, caller: str) -> list[Seen]:
        """The states of the list that a caller has seen, in order."""
        return [
            Seen(line["t"], line["stale"], line["instances"])
            for line in self.lines(caller)
            if "instances" in line
        ]

    def last(self, caller: str) -> dict[str, bool]:
        """What a caller saw last: address to healthy."""
        seen = self.seen(caller)
        return seen[-1].instances if seen else {}

    def until_listed(
        self, caller: str, wanted: Callable[[dict[str, bool]], Any], what: str, seconds: float
    ) -> Any:
        """Wait until a caller sees a list that satisfies a condition."""
        return wait_until(lambda: wanted(self.last(caller)), what=f"{caller} sees {what}", seconds=seconds)

    def ask(
        self, pod: str, url: str, *, method: str = "GET", body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """Send a request from inside a pod; headers' underscores become dashes."""
        script = (
            "import json,sys,urllib.request,urllib.error\n"
            "a=json.load(sys.stdin)\n"
            "b=None if a['body'] is None else json.dumps(a['body']).encode()\n"
            "r=urllib.request.Request(a['url'],data=b,method=a['method'],headers=a['headers'])\n"
            "try:\n"
            "  f=urllib.request.urlopen(r,timeout=20)\n"
            "  print(json.dumps([f.status,f.read().decode()]))\n"
            "except urllib.error.HTTPError as e: print(json.dumps([e.code,e.read().decode()]))\n"
        )
        request = {
            "url": url,
            "method": method,
            "body": body,
            "headers": {k.replace("_", "-"): v for k, v in headers.items()},
        }
        out = self.kubectl(
            "-n",
            self.namespace,
            "exec",
            "-i",
            pod,
            "-c",
            "app",
            "--",
            "python",
            "-c",
            script,
            input=json.dumps(request),
        )
        status, text = json.loads(out)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def token(self, pod: str) -> str:
        """Make a token as the kubelet projects it into a pod."""
        return str(
            self.kubectl(
                "-n",
                self.namespace,
                "create",
                "token",
                "default",
                "--audience=rollbook",
                "--duration=1h",
                "--bound-object-kind=Pod",
                f"--bound-object-name={pod}",
            )
        ).strip()
