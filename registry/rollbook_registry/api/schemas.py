"""Forms of values as JSON Schema, from the same patterns and limits that check them.

They describe and do not check: what is wrong is refused by the functions of :mod:`rollbook.names` and
:mod:`rollbook.model`, whose errors name the field and the accepted form.
"""

from __future__ import annotations

from typing import Any, Final

from rollbook import limits, model, names

CLUSTER_FORM: Final = f"[0-9A-Za-z-]{{1,{names.MAX_CLUSTER_LENGTH}}}"

_PORT_FORM: Final = (
    r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_HEX: Final = "[0-9A-Fa-f]{1,4}"
_BYTE: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4_FORM: Final = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
# Not every way to shorten one; those that are written.
_IPV6_FORM: Final = (
    rf"(?:(?:{_HEX}:){{7}}{_HEX}|(?:{_HEX}:){{1,6}}:{_HEX}|(?:{_HEX}:){{1,7}}:|::(?:{_HEX}:){{0,6}}{_HEX}|::)"
)
# Digits and dots alone would be a mistyped address.
_NAME_FORM: Final = rf"[A-Za-z](?:[0-9A-Za-z-]{{0,61}}[0-9A-Za-z])?(?:\.{names.HOSTNAME_FORM})?"


def _text(form: str, most: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{form}$", "minLength": 1, "maxLength": most, **more}


NAMESPACE: Final = _text(names.NAMESPACE_FORM, names.MAX_NAMESPACE_LENGTH)
GROUP: Final = _text(names.GROUP_FORM, names.MAX_NAMESPACE_LENGTH)
CLUSTER: Final = _text(names.CLUSTER_FORM, names.MAX_CLUSTER_LENGTH)
SERVICE: Final = _text(
    names.SERVICE_FORM,
    names.MAX_NAME_LENGTH,
    **{"not": {"anyOf": [{"enum": [".", ".."]}, {"pattern": "@@"}]}},
)
KEY: Final = {
    "type": "string",
    "pattern": rf"^(?:{_IPV4_FORM}|{_NAME_FORM}|\[{_IPV6_FORM}\]):{_PORT_FORM}"
    rf"(?::{CLUSTER_FORM}(?::[0-9A-Za-z._-]{{1,{names.MAX_ID_LENGTH}}})?)?$",
}
IP: Final = {
    "type": "string",
    "anyOf": [
        {"format": "ipv4"},
        {"format": "ipv6", "not": {"pattern": "%"}},
        {
            "pattern": f"^{names.HOSTNAME_FORM}$",
            "maxLength": names.MAX_HOST_LENGTH,
            "not": {"pattern": r"^[\d.]+$"},
        },
    ],
}
PORT: Final = {"minimum": 1, "maximum": names.MAX_PORT}
WEIGHT: Final = {"minimum": 0, "maximum": limits.MAX_WEIGHT}
INSTANCE_ID: Final = {"maxLength": names.MAX_ID_LENGTH}
OWNER: Final = {"anyOf": [_text(names.OWNER_FORM, names.MAX_ID_LENGTH), {"enum": [""]}]}
_MILLISECONDS: Final = {"type": "string", "pattern": "^[1-9][0-9]{0,6}$"}
METADATA: Final = {
    "maxProperties": limits.MAX_METADATA_PAIRS,
    "properties": {
        key: {**_MILLISECONDS, "description": about}
        for key, about in {
            model.HEARTBEAT_INTERVAL_KEY: "Milliseconds between beats.",
            model.UNHEALTHY_AFTER_KEY: "Milliseconds of silence after which it is unhealthy.",
            model.REMOVE_AFTER_KEY: "Milliseconds of silence after which it is removed.",
        }.items()
    },
    "description": f"Free pairs, at most {limits.MAX_METADATA_BYTES} bytes; the `preserved.*` keys set this "
    "instance's own times.",
}
