"""Settings of the webhook: what can be set, and its default."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path  # noqa: TC003  # rollbook.settings reads the annotations when the program runs
from typing import Any

from rollbook.addresses import session_url
from rollbook.logs import FORMATS, LEVELS
from rollbook.names import MAX_PORT
from rollbook.problems import Problem, bad_value
from rollbook.settings import setting
from rollbook_operator.settings import check_object_name
from rollbook_operator.webhook.inject import SidecarSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebhookSettings:
    """All settings of one webhook; each is a flag and a ``ROLLBOOK_`` variable.

    Raises:
        Problem: 400 ``bad_value`` naming the flag.
    """

    sidecar_image: str = setting(..., "Image of the sidecar that is injected.")
    sidecar_registry: str = setting(
        ...,
        "Registries that sidecars connect to, HOST[:PORT] separated by commas (port 7848 if none is said).",
    )
    sidecar_image_pull_policy: str = setting(
        "IfNotPresent", "When that image is pulled.", choices=("Always", "IfNotPresent", "Never")
    )
    sidecar_resources: str = setting(
        "",
        'Requests and limits of the sidecar, as JSON: {"requests": {"memory": "48Mi"}}.',
        formula="Memory: an idle sidecar (docs/performance.md), and 1.5 KiB an instance that it follows.",
        danger="A memory limit below what it needs has every injected sidecar killed again and again.",
    )
    audience: str = setting(
        "rollbook",
        "Audience of the token that a sidecar shows to the registry.",
        formula="The same as the registry's --audience.",
        danger="With another one the registry refuses every sidecar that is injected from then on.",
    )
    https_port: int = setting(9443, "Port of /mutate; 0 takes a free one.", minimum=0, maximum=MAX_PORT)
    health_port: int = setting(
        8081, "Port of /healthz, /readyz and /metrics; 0 takes a free one.", minimum=0, maximum=MAX_PORT
    )
    service_name: str = setting("rollbook-webhook", "Service by which the API server calls.")
    pod_namespace: str = setting(
        "", "Kubernetes namespace of that Service and of the Secret; in a cluster, its own by default."
    )
    configuration_name: str = setting(
        "rollbook-webhook", "MutatingWebhookConfiguration that is made to trust the certificate."
    )
    secret_name: str = setting("rollbook-webhook-tls", "Secret in which the certificate is kept.")
    kubeconfig: Path | None = setting(
        None,
        "For development: the kubeconfig whose current context to use; by default the pod's own account.",
    )
    log_level: str = setting("info", "What is logged.", choices=LEVELS)
    log_format: str = setting("json", "How it is logged.", choices=FORMATS)

    def __post_init__(self) -> None:
        if not self.sidecar_image.strip():
            raise bad_value("--sidecar-image", self.sidecar_image, "an image's name")
        addresses = [part.strip() for part in self.sidecar_registry.split(",") if part.strip()]
        if not addresses:
            raise bad_value("--sidecar-registry", self.sidecar_registry, "at least one host[:port]")
        for address in addresses:
            try:
                session_url(address)
            except Problem as problem:
                raise bad_value("--sidecar-registry", address, problem.accepted) from None
        if not self.audience:
            raise bad_value("--audience", "", "the registry's own --audience")
        for flag, name in (
            ("--service-name", self.service_name),
            ("--configuration-name", self.configuration_name),
            ("--secret-name", self.secret_name),
        ):
            check_object_name(flag, name)
        if self.pod_namespace:
            check_object_name("--pod-namespace", self.pod_namespace)
        self.resources()

    def resources(self) -> dict[str, Any]:
        """Read the sidecar's requests and limits.

        Raises:
            Problem: 400 ``bad_value``.
        """
        accepted = 'JSON with "requests" and "limits", each an object of quantities'
        try:
            found = json.loads(self.sidecar_resources or "{}")
        except ValueError:
            raise bad_value("--sidecar-resources", self.sidecar_resources, accepted) from None
        if not isinstance(found, dict) or not found.keys() <= {"requests", "limits"}:
            raise bad_value("--sidecar-resources", self.sidecar_resources, accepted)
        for quantities in found.values():
            if not isinstance(quantities, dict) or not all(
                isinstance(q, str | int | float) for q in quantities.values()
            ):
                raise bad_value("--sidecar-resources", self.sidecar_resources, accepted)
        return found

    def sidecar(self) -> SidecarSettings:
        """Return what all injected sidecars have in common."""
        return SidecarSettings(
            image=self.sidecar_image,
            pull_policy=self.sidecar_image_pull_policy,
            registry=self.sidecar_registry,
            audience=self.audience,
            resources=self.resources(),
        )
