"""Selectors: which instances are meant, by their metadata.

The grammar is that of Kubernetes' label selectors (the string form of "Labels and Selectors" in its
documentation), with one addition, since metadata may hold what labels can't::

    selector = term *("," term)
    term     = key / "!" key / key ("=" / "==" / "!=") value / key ("in" / "notin") "(" values ")"
    values   = value *("," value)
    key      = word
    value    = [word]                      ; nothing is the empty text
    word     = bare / quoted
    bare     = 1*<any but space, control characters and , ( ) = ! < > '>
    quoted   = "'" *<any but ' / "''"> "'"   ; '' within stands for one '

Spaces may stand between all of these. ``in`` and ``notin`` are words elsewhere. As in Kubernetes, ``k!=v``
and ``k notin (v)`` are also true of what has no ``k``. ``<`` and ``>``, which it knows for nodes, are not.
"""

from __future__ import annotations

import functools
import re
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from rollbook.limits import MAX_SELECTOR_LENGTH, MAX_SELECTOR_TERMS
from rollbook.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCEPTED: Final = (
    "terms with commas between them, each of the form k, !k, k=v, k!=v, k in (a,b) or k notin (a,b); "
    "a key or value with spaces or any of ,()=!<>' stands in single quotes, with '' for a quote"
)

# Spelled out, since `\s` is not the same to Python and to JSON Schema (ECMAScript), which shares the pattern.
_SPACE: Final = r"[ \t\n\r\f\v]"
_BARE: Final = r"[^\s\x00-\x1f\x7f\x85\ufeff,()=!<>']+"
_QUOTED: Final = r"'(?:[^']|'')*'"
_TOKEN = re.compile(
    rf"{_SPACE}*(?:(?P<bare>{_BARE})|(?P<quoted>{_QUOTED})|(?P<sign>==|!=|[=!,()])|(?P<end>\Z))"
)

_WORD: Final = rf"(?:{_BARE}|{_QUOTED})"
_COMMA: Final = rf"{_SPACE}*,{_SPACE}*"
_VALUES: Final = rf"{_SPACE}+(?:not)?in{_SPACE}*\({_SPACE}*{_WORD}(?:{_COMMA}{_WORD})*{_SPACE}*\)"
_TERM: Final = rf"(?:!{_SPACE}*{_WORD}|{_WORD}(?:{_SPACE}*(?:==?|!=){_SPACE}*{_WORD}?|{_VALUES})?)"
PATTERN: Final = rf"^{_SPACE}*(?:{_TERM}(?:{_COMMA}{_TERM})*{_SPACE}*)?$"
"""The grammar as a regular expression, for the API's description; texts are read by :func:`parse`."""


class Operator(Enum):
    """How a term compares."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    ABSENT = "absent"


class Term(NamedTuple):
    """One condition on one key; ``=`` and ``!=`` are ``in`` and ``notin`` of one value."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, metadata: Mapping[str, str]) -> bool:
        """Say whether some metadata satisfies it."""
        value = metadata.get(self.key)
        match self.operator:
            case Operator.IN:
                return value in self.values
            case Operator.NOT_IN:
                return value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.ABSENT:
                return value is None


class Selector(NamedTuple):
    """All terms that must hold; equal for every spelling of the same terms in any order."""

    terms: frozenset[Term] = frozenset()

    def matches(self, metadata: Mapping[str, str]) -> bool:
        """Say whether some metadata satisfies all terms; without terms, everything does."""
        return all(term.matches(metadata) for term in self.terms)


EVERYTHING: Final = Selector()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int

    @property
    def shown(self) -> str:
        return "its end" if self.kind == "end" else repr(self.text)


@functools.lru_cache(maxsize=1024)
def parse(text: str, field: str = "selector") -> Selector:
    """Read a selector; an empty one selects everything.

    Raises:
        Problem: 400 ``bad_value`` naming the field, the position (from 1) and the accepted form.
    """
    if len(text) > MAX_SELECTOR_LENGTH:
        raise Problem(
            "bad_value",
            f"{field} has {len(text)} characters; accepted: at most {MAX_SELECTOR_LENGTH}",
            field=field,
            accepted=f"at most {MAX_SELECTOR_LENGTH} characters",
        )
    return _Parser(text, field).selector()


class _Parser:
    def __init__(self, text: str, field: str) -> None:
        self._text = text
        self._field = field
        self._next = self._token(0)

    def selector(self) -> Selector:
        if self._next.kind == "end":
            return EVERYTHING
        terms = {self._term()}
        read = 1
        while self._next.text == ",":
            comma = self._take()
            read += 1
            if read > MAX_SELECTOR_TERMS:
                raise self._wrong(comma.at, f"has more than {MAX_SELECTOR_TERMS} terms")
            terms.add(self._term())
        if self._next.kind != "end":
            raise self._wrong(self._next.at, f"has {self._next.shown} where a comma or its end is expected")
        return Selector(frozenset(terms))

    def _term(self) -> Term:
        if self._next.text == "!":
            self._take()
            return Term(self._word("a key"), Operator.ABSENT)
        key = self._word("a key")
        match self._next.text if self._next.kind in {"sign", "bare"} else "":
            case "=" | "==":
                self._take()
                return Term(key, Operator.IN, frozenset({self._value()}))
            case "!=":
                self._take()
                return Term(key, Operator.NOT_IN, frozenset({self._value()}))
            case "in" | "notin" as operator:
                self._take()
                return Term(key, Operator(operator), self._values())
            case _:
                return Term(key, Operator.EXISTS)

    def _values(self) -> frozenset[str]:
        self._sign("(")
        if self._next.text == ")":
            raise self._wrong(self._next.at, "has no value between its parentheses")
        values = {self._value()}
        while self._next.text == ",":
            self._take()
            values.add(self._value())
        self._sign(")")
        return frozenset(values)

    def _value(self) -> str:
        return self._word("a value") if self._next.kind in {"bare", "quoted"} else ""

    def _word(self, what: str) -> str:
        token = self._next
        if token.kind not in {"bare", "quoted"}:
            raise self._wrong(token.at, f"has {token.shown} where {what} is expected")
        self._take()
        return token.text if token.kind == "bare" else token.text[1:-1].replace("''", "'")

    def _sign(self, sign: str) -> None:
        if self._next.text != sign:
            raise self._wrong(self._next.at, f"has {self._next.shown} where {sign!r} is expected")
        self._take()

    def _take(self) -> _Token:
        token = self._next
        self._next = self._token(token.at + len(token.text))
        return token

    def _token(self, start: int) -> _Token:
        found = _TOKEN.match(self._text, start)
        if found is None or found.lastgroup is None:
            rest = self._text[start:]
            at = start + len(rest) - len(rest.lstrip(" \t\n\r\f\v"))
            if self._text[at] == "'":
                raise self._wrong(at, "has a quote that is not closed")
            raise self._wrong(at, f"has {self._text[at]!r}, which must stand in quotes")
        return _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))

    def _wrong(self, at: int, what: str) -> Problem:
        return Problem(
            "bad_value",
            f"{self._field} {what}, at position {at + 1}; accepted: {ACCEPTED}",
            field=self._field,
            accepted=ACCEPTED,
        )
