"""Patterns of service names: ``*`` stands for any run of characters, everything else for itself.

A name that holds a ``*`` itself is matched by its own spelling too, along with what else that matches. Groups
may be patterns; a namespace is always exact, so that a new service costs only the patterns of its namespace.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from rollbook.names import (
    DEFAULT_GROUP,
    DEFAULT_NAMESPACE,
    MAX_NAMESPACE_LENGTH,
    ServiceKey,
    check_group,
    check_namespace,
    check_service,
)
from rollbook.problems import bad_value

ANY: Final = "*"


def matches(pattern: str, text: str) -> bool:
    """Say whether a text is what a pattern stands for.

    Taking the leftmost place for each piece is enough where ``*`` is the only sign, so this looks at no
    character twice for a piece: no pattern makes it slow, as one may a regular expression.
    """
    first, *rest = pattern.split(ANY)
    if not rest:
        return text == pattern
    *middle, last = rest
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


class Pattern(NamedTuple):
    """Services of one namespace whose group and name match."""

    namespace: str = DEFAULT_NAMESPACE
    group: str = DEFAULT_GROUP
    service: str = ANY

    def matches(self, key: ServiceKey) -> bool:
        """Say whether a service is meant."""
        return (
            key.namespace == self.namespace
            and matches(self.service, key.name)
            and (self.group == key.group or matches(self.group, key.group))
        )

    def __str__(self) -> str:
        """Write it as a service is written."""
        return f"{self.namespace}/{self.group}@@{self.service}"


def check_service_pattern(value: str, field: str = "pattern") -> str:
    """Return a pattern of service names if it is acceptable.

    Raises:
        Problem: 400 ``bad_value``.
    """
    return check_service(value, field)


def check_group_pattern(value: str, field: str = "group") -> str:
    """Return a pattern of group names if it is acceptable.

    Raises:
        Problem: 400 ``bad_value``.
    """
    exact = value.replace(ANY, "")
    if len(value) > MAX_NAMESPACE_LENGTH or not value:
        raise bad_value(
            field, value, f"a group's name, or a pattern of 1 to {MAX_NAMESPACE_LENGTH} characters"
        )
    if exact:
        check_group(exact, field)
    return value


def pattern(service: str, *, namespace: str = DEFAULT_NAMESPACE, group: str = DEFAULT_GROUP) -> Pattern:
    """Make a checked :class:`Pattern`.

    Raises:
        Problem: 400 ``bad_value`` naming the part that is wrong.
    """
    return Pattern(check_namespace(namespace), check_group_pattern(group), check_service_pattern(service))
