"""The real Prometheus finds in the book what there is to scrape, and sees it change."""

from __future__ import annotations

import os

import pytest

import prometheuskit
from registrykit import an_entry
from rollbook import Client


@pytest.fixture(scope="module")
def prometheus():
    try:
        return prometheuskit.program()
    except prometheuskit.NoPrometheus as reason:
        if os.environ.get("CI", "").lower() in {"true", "1"}:
            pytest.fail(f"under CI a test must not be skipped: {reason}", pytrace=False)
        pytest.skip(str(reason))


def scraping(registry, **discovery):
    return {
        "job_name": "book",
        "http_sd_configs": [{"url": f"{registry.url}/prometheus/sd", "refresh_interval": "1s", **discovery}],
        "relabel_configs": [
            {"action": "keep", "source_labels": ["__meta_rollbook_enabled"], "regex": "true"},
            {"source_labels": ["__meta_rollbook_service"], "target_label": "service"},
            {"source_labels": ["__meta_rollbook_metadata_app_version"], "target_label": "version"},
        ],
    }


def rollbook_labels(labels):
    return {
        k.removeprefix("__meta_rollbook_"): v for k, v in labels.items() if k.startswith("__meta_rollbook_")
    }


async def test_prometheus_discovers_the_instances_with_their_labels_and_follows_the_book(
    prometheus, start_registry, tmp_path
):
    registry = await start_registry(
        "--beat-interval", "200ms", "--unhealthy-after", "2s", "--remove-after", "2s"
    )
    orders = an_entry(
        8080,
        instance_id="orders-0",
        cluster="eu-1",
        weight=2.5,
        metadata={"app/version": "2", "app_version": "3"},
    )
    stock = an_entry(9090, service="stock", group="shop", ip="fd00::7", enabled=False)
    async with (
        Client(registry.address) as client,
        client.register(orders, stock),
        prometheuskit.running(prometheus, tmp_path, scraping(registry)) as found,
    ):
        targets = await found.until(lambda t: set(t) == {"10.0.0.1:8080", "[fd00::7]:9090"})
        # To Prometheus an empty label, here the owner's, is none.
        assert rollbook_labels(targets["10.0.0.1:8080"]) == {
            "namespace": "public",
            "group": "DEFAULT_GROUP",
            "service": "orders",
            "cluster": "eu-1",
            "instance_id": "orders-0",
            "healthy": "true",
            "enabled": "true",
            "ready": "true",
            "alive": "true",
            "ephemeral": "true",
            "weight": "2.5",
            "metadata_app_version": "3",
        }
        other = rollbook_labels(targets["[fd00::7]:9090"])
        assert (other["group"], other["enabled"]) == ("shop", "false")
        # Its own relabelling decides what is scraped, and under which labels.
        (active,) = (await found.get("/api/v1/targets?state=active"))["activeTargets"]
        assert (active["labels"]["service"], active["labels"]["version"]) == ("orders", "3")
        assert active["scrapeUrl"] == "http://10.0.0.1:8080/metrics"

        async with client.register(an_entry(8081)):
            await found.until(lambda t: set(t) == {"10.0.0.1:8080", "10.0.0.1:8081", "[fd00::7]:9090"})
        await found.until(lambda t: set(t) == {"10.0.0.1:8080", "[fd00::7]:9090"})
        client.set_down(orders.ref)
        await found.until(lambda t: t["10.0.0.1:8080"]["__meta_rollbook_healthy"] == "false")
        client.drop(orders.ref, stock.ref)
        await found.until(lambda t: not t)
