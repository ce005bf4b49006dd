"""Lists as bytes: encoded once for all who ask, never a stale one, and bounded whatever is asked."""

from __future__ import annotations

import msgspec
import pytest

from registrykit import ORDERS, an_entry, key_of
from rollbook import selector
from rollbook.filters import Filter
from rollbook.names import LeaseId
from rollbook_registry.api import lists as module
from rollbook_registry.api.lists import Lists
from rollbook_registry.book import Book
from rollbook_registry.settings import RegistrySettings


def a_book(**settings):
    return Book(RegistrySettings(auth="none", **settings), clock=lambda: 0.0, wall=lambda: 0.0)


@pytest.fixture
def book():
    return a_book()


@pytest.fixture
def lists(book):
    return Lists(book)


def enter(book, port, *, service="orders", **metadata):
    entry = an_entry(port, service=service, metadata=metadata)
    book.apply(lambda c, now: c.register_http(LeaseId(f"http/10.0.0.1:{port}"), entry, term=0, now=now))


def by(text):
    return Filter(selector=selector.parse(text))


def ports(data):
    return [i["port"] for i in msgspec.json.decode(data)["instances"]]


def test_one_encoding_serves_all_who_ask_for_the_same_in_any_spelling(book, lists):
    enter(book, 1, v="1")
    assert lists.encoded(ORDERS, by("v=1,!x")) is lists.encoded(ORDERS, by("!x, v in (1)"))


def test_every_form_is_made_anew_after_a_change(book, lists):
    enter(book, 1, v="1")
    assert (ports(lists.encoded(ORDERS)), ports(lists.encoded(ORDERS, by("v=1")))) == ([1], [1])
    enter(book, 2, v="1")
    assert (ports(lists.encoded(ORDERS)), ports(lists.encoded(ORDERS, by("v=1")))) == ([1, 2], [1, 2])
    enter(book, 1, v="2")
    assert (ports(lists.encoded(ORDERS)), ports(lists.encoded(ORDERS, by("v=1")))) == ([1, 2], [2])
    assert ports(lists.encoded(ORDERS, by("v=2"))) == [1]


def test_a_list_says_so_when_the_book_settles(book, lists):
    enter(book, 1)
    assert msgspec.json.decode(lists.encoded(ORDERS))["settled"] is False
    before = lists.etag(ORDERS)
    book.outlet.settle()
    assert msgspec.json.decode(lists.encoded(ORDERS))["settled"] is True
    assert lists.etag(ORDERS) != before


def test_forms_are_bounded_and_the_whole_list_keeps_its_place(book, lists):
    enter(book, 1, v="1")
    for n in range(module.MAX_FORMS * 3):
        assert ports(lists.encoded(ORDERS, by(f"v!=x{n}"))) == [1]
    assert lists.encoded(ORDERS) is lists.encoded(ORDERS)
    assert len(lists._versions[ORDERS].forms) == module.MAX_FORMS + 1


def test_bytes_are_bounded_whoever_asks_for_whatever():
    book = a_book(max_list_cache=20_000)
    lists = Lists(book)
    for n in range(100):
        lists.encoded(key_of(f"nobody-{n}"))
        assert lists.kept_bytes <= 20_000
    enter(book, 1, v="x" * 8000)
    for n in range(5):
        assert ports(lists.encoded(ORDERS, by(f"v!={n}"))) == [1]
        assert lists.kept_bytes <= 20_000
    kept = sum(len(d) + module._FORM_COST for v in lists._versions.values() for d in v.forms.values())
    assert lists.kept_bytes == kept


def test_a_list_that_is_too_large_to_keep_is_answered_all_the_same():
    book = a_book(max_list_cache=100)
    lists = Lists(book)
    enter(book, 1)
    assert ports(lists.encoded(ORDERS)) == [1]
    assert (lists.kept_bytes, len(lists._versions)) == (0, 0)
