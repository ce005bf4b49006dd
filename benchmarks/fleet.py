"""The instances that benchmarks register, and the requests about them."""

from __future__ import annotations

import json
from typing import Final

from benchmarks.http_load import HttpLoad, request
from rollbook import Entry

LONG: Final = {"ROLLBOOK_UNHEALTHY_AFTER": "10m", "ROLLBOOK_REMOVE_AFTER": "10m"}
"""Nobody beats while the limit has its turn, and what expires is not what is measured here."""

PORT: Final = 8080
PER_SERVICE: Final = 10
METADATA: Final = {"version": "1.4.2", "zone": "eu-1a"}


def address(number: int) -> str:
    """Return the address of the n-th instance."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def entry(number: int, service: str) -> Entry:
    """Return the n-th instance as a session enters it."""
    return Entry(
        service=service, ip=address(number), port=PORT, instance_id=f"{service}-{number}", metadata=METADATA
    )


def registration(number: int, service: str = "") -> bytes:
    """Make the request that registers the n-th instance, ten to a service if none is named."""
    name = service or f"orders-{number // PER_SERVICE}"
    body = {"ip": address(number), "port": PORT, "instance_id": f"{name}-{number}", "metadata": METADATA}
    return request("POST", f"/services/{name}/instances", json.dumps(body).encode())


def beat(number: int) -> bytes:
    """Make the request of a light beat for the n-th instance, ten to a service."""
    key = f"{address(number)}:{PORT}:DEFAULT"
    return request("PUT", f"/services/orders-{number // PER_SERVICE}/instances/{key}/beat?term=1")


async def register(port: int, numbers: range, service: str = "") -> None:
    """Register instances at a registry, each once."""
    ours = [registration(n, service) for n in numbers]
    await HttpLoad(port, iter(ours), 201).until(len(ours))
