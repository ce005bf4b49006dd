"""Lists as bytes: ``GET /services/{service}`` encodes each list once for all who ask for it as it is."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from rollbook.filters import UNFILTERED
from rollbook.model import ServiceList

if TYPE_CHECKING:
    from rollbook.filters import Filter
    from rollbook.names import ServiceKey
    from rollbook_registry.book import Book

MAX_FORMS: Final = 64
"""Filtered forms of one list that are kept; who asks for more has each encoded anew."""

_FORM_COST: Final = 512
"""Bytes that a form costs beside its list, about: an empty list is not free to keep."""


class _Version(NamedTuple):
    """A service's list at one moment, in the forms that were asked for."""

    number: int
    settled: bool
    forms: dict[Filter, bytes]


class Lists:
    """The lists that were asked for lately, encoded."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._versions: OrderedDict[ServiceKey, _Version] = OrderedDict()
        self.kept_bytes = 0

    def etag(self, key: ServiceKey) -> str:
        """Return the revision of a list; it turns when the book settles, too."""
        service = self._book.catalog.service(key)
        revision = self._book.outlet.revision(service.number if service else 0)
        return revision if self._book.outlet.settled else f"{revision}.unsettled"

    def encoded(self, key: ServiceKey, wanted: Filter = UNFILTERED) -> bytes:
        """Return a list as JSON."""
        service = self._book.catalog.service(key)
        number = service.number if service else 0
        settled = self._book.outlet.settled
        version = self._versions.get(key)
        if version is None or version[:2] != (number, settled):
            self._forget(key)
            version = _Version(number, settled, {})
        data = version.forms.get(wanted)
        if data is None:
            instances = service.instances.values() if service else ()
            threshold = self._book.catalog.rulings.protect_threshold(key)
            namespace, group, name = key
            data = msgspec.json.encode(
                ServiceList(
                    namespace=namespace,
                    group=group,
                    service=name,
                    revision=self.etag(key),
                    settled=settled,
                    instances=wanted.take(instances),
                    protect_threshold=threshold,
                    protected=wanted.protects(instances, threshold),
                )
            )
            self._keep(key, version, wanted, data)
        return data

    def _keep(self, key: ServiceKey, version: _Version, wanted: Filter, data: bytes) -> None:
        # The unfiltered list always has its place beside the filtered ones.
        if wanted != UNFILTERED and len(version.forms) >= MAX_FORMS:
            return
        version.forms[wanted] = data
        self._versions[key] = version
        self._versions.move_to_end(key)
        self.kept_bytes += len(data) + _FORM_COST
        while self.kept_bytes > self._book.settings.max_list_cache:
            self._forget(next(iter(self._versions)))

    def _forget(self, key: ServiceKey) -> None:
        version = self._versions.pop(key, None)
        if version is not None:
            self.kept_bytes -= sum(len(data) + _FORM_COST for data in version.forms.values())
