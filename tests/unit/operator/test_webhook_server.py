"""The webhook over real TLS, with a small API server for its Secret and its configuration."""

import asyncio
import base64
import contextlib
import datetime as dt
import random
import ssl

import aiohttp
import pytest

from rollbook_operator.webhook import app as webhook_app
from rollbook_operator.webhook import certs, keeper
from rollbook_operator.webhook.app import Webhook
from rollbook_operator.webhook.certs import Bundle
from rollbook_operator.webhook.settings import WebhookSettings

SECRET = "/api/v1/namespaces/rollbook/secrets/rollbook-webhook-tls"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/rollbook-webhook"
NAME = "rollbook-webhook.rollbook.svc"
START = dt.datetime.now(dt.UTC)


class Calendar:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


@pytest.fixture
def calendar():
    return Calendar()


@pytest.fixture
def configuration(kube_server):
    kube_server.objects[CONFIGURATION] = {
        "metadata": {"name": "rollbook-webhook", "resourceVersion": "1"},
        "webhooks": [
            {"name": "inject.rollbook.io", "clientConfig": {"service": {"name": "rollbook-webhook"}}}
        ],
    }


def bundle_of(kube_server):
    config = kube_server.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]
    assert config["service"] == {"name": "rollbook-webhook"}
    return base64.b64decode(config["caBundle"])


@contextlib.asynccontextmanager
async def running(kube, calendar):
    chosen = WebhookSettings(
        sidecar_image="sidecar:dev",
        sidecar_registry="rollbook:7848",
        pod_namespace="rollbook",
        https_port=0,
        health_port=0,
    )
    webhook = Webhook(chosen, kube, host="127.0.0.1", now=calendar, rng=random.Random(1))
    task = asyncio.create_task(webhook.run())
    await webhook.started.wait()
    try:
        yield webhook
    finally:
        webhook.stop()
        await task


async def ask(webhook, kube_server, body):
    """Call as the API server does: by the Service's name, trusting the configuration only."""
    context = ssl.create_default_context(cadata=bundle_of(kube_server).decode())
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"https://127.0.0.1:{webhook.port}/mutate", json=body, ssl=context, server_hostname=NAME
        ) as response,
    ):
        return response.status, await response.json(content_type=None)


async def probe(webhook, path):
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{webhook.health_port}{path}") as response,
    ):
        return response.status, await response.text()


def review(pod, **more):
    request = {
        "uid": "r-1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": "shop",
        "object": pod,
        **more,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


async def test_a_review_is_answered_over_tls_that_the_configuration_trusts(
    kube, kube_server, configuration, calendar, pod, eventually, decode_patch
):
    async with running(kube, calendar) as webhook:
        await eventually(lambda: webhook.keeper.trusted)
        status, answer = await ask(webhook, kube_server, review(pod()))
        assert status == 200
        assert answer["apiVersion"] == "admission.k8s.io/v1"
        assert (answer["response"]["uid"], answer["response"]["allowed"]) == ("r-1", True)
        patch = decode_patch(answer["response"])
        assert any(op["path"] == "/spec/initContainers" for op in patch)
        secrets = set()
        for _ in range(2):
            _, answer = await ask(webhook, kube_server, review(pod(), dryRun=True))
            (op,) = [o for o in decode_patch(answer["response"]) if o["path"] == "/spec/initContainers"]
            secrets |= {e["value"] for e in op["value"][0]["env"] if e["name"] == "ROLLBOOK_DRAIN_SECRET"}
        assert len(secrets) == 2
        assert all(len(s) == 32 for s in secrets)
        _, metrics = await probe(webhook, "/metrics")
        assert 'rollbook_webhook_reviews_total{reason="injected"} 3.0' in metrics


async def test_warnings_reach_whoever_creates_the_pod(
    kube, kube_server, configuration, calendar, pod, eventually
):
    bad = pod()
    bad["metadata"]["annotations"]["rollbook.io/linger"] = "long"
    async with running(kube, calendar) as webhook:
        await eventually(lambda: webhook.keeper.trusted)
        _, answer = await ask(webhook, kube_server, review(bad))
    assert answer["response"]["allowed"] is True
    assert "patch" not in answer["response"]
    assert "rollbook.io/linger is 'long'" in answer["response"]["warnings"][0]
    assert all(len(w) <= 256 for w in answer["response"]["warnings"])


async def test_other_operations_and_odd_pods_are_let_through(
    kube, kube_server, configuration, calendar, pod, eventually
):
    odd = pod(spec__containers="not a list")
    async with running(kube, calendar) as webhook:
        await eventually(lambda: webhook.keeper.trusted)
        for body in (review(pod(), operation="UPDATE"), review(None), review(odd)):
            status, answer = await ask(webhook, kube_server, body)
            assert (status, answer["response"]["allowed"]) == (200, True)
            assert "patch" not in answer["response"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "apiVersion"),
        ({"apiVersion": "admission.k8s.io/v1beta1"}, "apiVersion"),
        ({"apiVersion": "admission.k8s.io/v1"}, "request"),
        ({"apiVersion": "admission.k8s.io/v1", "request": {}}, "request.uid"),
    ],
)
async def test_what_is_no_review_is_refused_by_the_name_of_the_field(
    kube, kube_server, configuration, calendar, eventually, body, field
):
    async with running(kube, calendar) as webhook:
        await eventually(lambda: webhook.keeper.trusted)
        status, problem = await ask(webhook, kube_server, body)
    assert (status, problem["code"], problem["field"]) == (400, "bad_value", field)


async def test_it_is_ready_only_when_the_configuration_trusts_it(
    kube, kube_server, calendar, eventually, monkeypatch
):
    monkeypatch.setattr(keeper.retry, "FIRST", 0.01)
    async with running(kube, calendar) as webhook:
        await eventually(lambda: kube_server.count("GET", CONFIGURATION) >= 2)
        assert (await probe(webhook, "/readyz"))[0] == 503
        assert (await probe(webhook, "/healthz"))[0] == 200
        kube_server.objects[CONFIGURATION] = {
            "metadata": {"name": "rollbook-webhook", "resourceVersion": "1"},
            "webhooks": [{"name": "x", "clientConfig": {"service": {"name": "rollbook-webhook"}}}],
        }
        await eventually(lambda: webhook.keeper.trusted)
        assert (await probe(webhook, "/readyz"))[0] == 200


async def test_two_replicas_share_one_certificate(kube, kube_server, configuration, calendar, eventually):
    async with running(kube, calendar) as one, running(kube, calendar) as other:
        await eventually(lambda: one.keeper.served and one.keeper.served == other.keeper.served)
        assert bundle_of(kube_server) == one.keeper.served.ca_certificate


async def test_the_loser_of_the_race_to_create_reads_what_the_winner_made(
    kube, kube_server, configuration, calendar
):
    winner = certs.make(name=NAME, now=START, before=None)
    one = make_keeper(kube, calendar)
    write = one._write

    async def too_late(path, secret, bundle):
        if SECRET not in kube_server.objects:
            kube_server.objects[SECRET] = {
                "metadata": {"name": "rollbook-webhook-tls", "resourceVersion": "5"},
                "data": winner.to_secret(),
            }
        await write(path, secret, bundle)

    one._write = too_late
    await one.round()
    assert one.served == winner
    assert kube_server.count("POST", SECRET.rsplit("/", 1)[0]) == 1


def make_keeper(kube, calendar):
    return keeper.Keeper(
        kube,
        namespace="rollbook",
        service="rollbook-webhook",
        secret="rollbook-webhook-tls",
        configuration="rollbook-webhook",
        now=calendar,
        rng=random.Random(1),
    )


async def test_a_renewed_certificate_is_served_only_once_it_is_trusted(
    kube, kube_server, configuration, calendar
):
    one = make_keeper(kube, calendar)
    await one.round()
    first = one.served
    calendar.now = certs.renewal_time(first)
    await one.round()
    assert (one.served, one.changing) == (first, True)
    renewed = Bundle.from_secret(kube_server.objects[SECRET]["data"])
    assert renewed != first
    assert bundle_of(kube_server) == renewed.ca_certificate + first.ca_certificate
    await one.round()
    assert (one.served, one.changing) == (renewed, False)


async def test_the_certificate_changes_under_a_running_server(
    kube, kube_server, configuration, calendar, pod, eventually, monkeypatch
):
    monkeypatch.setattr(keeper, "INTERVAL", 0.02)
    monkeypatch.setattr(keeper, "CHANGEOVER", 0.02)

    async def shown(webhook):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", webhook.port, ssl=context)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return der

    async with running(kube, calendar) as webhook:
        await eventually(lambda: webhook.keeper.trusted)
        first, before = webhook.keeper.served, await shown(webhook)
        del kube_server.objects[SECRET]
        await eventually(lambda: webhook.keeper.served != first)
        assert await shown(webhook) != before
        assert (await ask(webhook, kube_server, review(pod())))[0] == 200


async def test_what_somebody_takes_out_of_the_configuration_is_put_back(
    kube, kube_server, configuration, calendar
):
    one = make_keeper(kube, calendar)
    await one.round()
    kube_server.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]["caBundle"] = ""
    await one.round()
    assert bundle_of(kube_server) == one.served.ca_certificate
    patches = kube_server.count("PATCH", CONFIGURATION)
    await one.round()
    assert kube_server.count("PATCH", CONFIGURATION) == patches


def test_settings_name_the_flag_that_is_wrong():
    good = {"sidecar_image": "i", "sidecar_registry": "r"}
    for flag, change in {
        "--sidecar-registry": {"sidecar_registry": "http://x/y"},
        "--sidecar-resources": {"sidecar_resources": '{"requests": 1}'},
        "--secret-name": {"secret_name": "Not_A_Name"},
    }.items():
        with pytest.raises(webhook_app.server.Problem, match=flag):
            WebhookSettings(**(good | change))
