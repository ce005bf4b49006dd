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
def filter_body(context, body):
    if not isinstance(body, dict):
        return True
    # To JSON Schema 8080.0 is an integer. No client writes a port so, and the registry refuses it.
    if isinstance(body.get("port"), float):
        return False
    # That one time may not be above the other is beyond JSON Schema.
    metadata = body.get("metadata")
    pair = {"preserved.heart.beat.timeout", "preserved.ip.delete.timeout"}
    return not isinstance(metadata, dict) or not pair <= metadata.keys()
