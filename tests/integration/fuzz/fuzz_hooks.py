"""What a fuzzer that knows only JSON Schema must be told of this API."""

from __future__ import annotations

from urllib.parse import urlencode

import schemathesis

MAX_REQUEST_LINE = 8190
"""Bytes of a request line that aiohttp reads; a longer one is answered 400 before the API sees it."""


@schemathesis.hook
def filter_query(context, query):
    return not query or len(urlencode(query, doseq=True)) < MAX_REQUEST_LINE - 2048


@schemathesis.hook
def map_query(context, query):
    # A long poll whose revision is right waits; not for a minute at a time.
    if query and query.get("wait") and query.get("revision"):
        query["wait"] = "1ms"
    return query


@schemathesis.hook
def map_case(context, case):
    # Not map_body and filter_body, which the coverage phase passes by.
    if isinstance(case.body, dict):
        case.body = whole(case.body)
    return case


@schemathesis.hook
def filter_case(context, case):
    body = case.body
    return not isinstance(body, dict) or (times_fit(body.get("metadata")) and check_fits(body))


def whole(value):
    """To JSON Schema 8080.0 is an integer. No client writes a port so, and the registry refuses it."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def times_fit(metadata):
    """That one time may not be above the other is beyond JSON Schema."""
    pair = {"preserved.heart.beat.timeout", "preserved.ip.delete.timeout"}
    return not isinstance(metadata, dict) or not pair <= metadata.keys()


def check_fits(body):
    """As above: a timeout is at most its interval, 5 s unless it says so; what is ephemeral has no check."""
    check = body.get("check")
    if not isinstance(check, dict):
        return True
    timeout, interval = check.get("timeout", 1), check.get("interval", 5)
    numbers = isinstance(timeout, int | float) and isinstance(interval, int | float)
    return (not numbers or timeout <= interval) and not ("ip" in body and body.get("ephemeral", True))
