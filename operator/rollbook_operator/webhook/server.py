"""The webhook's HTTP side: an AdmissionReview in, one out."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rollbook.limits import MAX_BODY_BYTES
from rollbook.problems import CONTENT_TYPE, Problem, bad_value
from rollbook_operator.webhook.inject import Injection, inject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rollbook_operator.webhook.inject import SidecarSettings

log = structlog.get_logger("rollbook.webhook")

PATH: Final = "/mutate"
API_VERSION: Final = "admission.k8s.io/v1"
MAX_REVIEW_BYTES: Final = 4 * MAX_BODY_BYTES
"""Bytes of one AdmissionReview; the API server's own limit for an object is below 3 MiB."""

MAX_WARNING: Final = 250
"""Characters of one warning; the API server cuts off what is longer than 256."""


class Metrics:
    """The webhook's figures, in a collector of their own."""

    def __init__(self) -> None:
        self.collector = CollectorRegistry()
        self.reviews = Counter(
            "rollbook_webhook_reviews_total",
            "Pods that were reviewed, by what came of them",
            ["reason"],
            registry=self.collector,
        )
        self.seconds = Histogram(
            "rollbook_webhook_review_seconds",
            "Time to answer a review",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1),
            registry=self.collector,
        )
        self.expiry = Gauge(
            "rollbook_webhook_certificate_expiry_timestamp_seconds",
            "When the certificate that is served ends",
            registry=self.collector,
        )


def make_app(settings: SidecarSettings, metrics: Metrics, make_secret: Callable[[], str]) -> web.Application:
    """Make the application that the API server calls."""

    async def mutate(request: web.Request) -> web.Response:
        start = time.perf_counter()
        try:
            review = read(await request.read())
        except Problem as problem:
            metrics.reviews.labels("bad_request").inc()
            body = msgspec.json.encode(problem.details())
            return web.Response(body=body, status=problem.status, content_type=CONTENT_TYPE)
        result = decide(review, settings, make_secret())
        metrics.reviews.labels(result.reason).inc()
        metrics.seconds.observe(time.perf_counter() - start)
        log.info(
            "reviewed",
            reason=result.reason,
            namespace=review.get("namespace", ""),
            name=review.get("name")
            or ((review.get("object") or {}).get("metadata") or {}).get("generateName"),
            dry_run=bool(review.get("dryRun")),
        )
        return web.json_response(answer(str(review["uid"]), result))

    app = web.Application(client_max_size=MAX_REVIEW_BYTES)
    app.router.add_post(PATH, mutate)
    return app


def read(body: bytes) -> dict[str, Any]:
    """Return the request within an AdmissionReview.

    Raises:
        Problem: 400 ``bad_value``, naming the field.
    """
    try:
        review = json.loads(body)
    except ValueError:
        raise bad_value("body", body[:40].decode(errors="replace"), "an AdmissionReview as JSON") from None
    if not isinstance(review, dict) or review.get("apiVersion") != API_VERSION:
        shown = review.get("apiVersion") if isinstance(review, dict) else review
        raise bad_value("apiVersion", shown, API_VERSION)
    request = review.get("request")
    if not isinstance(request, dict):
        raise bad_value("request", request, "an object")
    if not isinstance(request.get("uid"), str) or not request["uid"]:
        raise bad_value("request.uid", request.get("uid"), "the request's UID")
    return request


def decide(request: Mapping[str, Any], settings: SidecarSettings, secret: str) -> Injection:
    """Decide what is added; whatever happens, the pod is let through."""
    pod = request.get("object")
    kind = (request.get("kind") or {}).get("kind")
    if request.get("operation") != "CREATE" or kind != "Pod" or not isinstance(pod, dict):
        return Injection(patch=[], warnings=[], reason="not_a_new_pod")
    try:
        return inject(pod, settings, secret)
    except Exception:  # an oddity of one pod must not keep it from starting
        log.exception("injection_failed", namespace=request.get("namespace", ""))
        return Injection(
            patch=[], warnings=["rollbook: no sidecar, as the webhook failed; see its log"], reason="failed"
        )


def answer(uid: str, result: Injection) -> dict[str, Any]:
    """Make the AdmissionReview that goes back."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if result.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(result.patch).encode()).decode()
    if result.warnings:
        response["warnings"] = [
            text if len(text) <= MAX_WARNING else f"{text[: MAX_WARNING - 1]}…" for text in result.warnings
        ]
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
