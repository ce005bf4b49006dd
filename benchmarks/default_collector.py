"""``python -m benchmarks.default_collector``: the registry, its collector as Python has it by default.

What a start has made is frozen, as it always was; from then on Python decides. Pauses are counted as well.
"""

from __future__ import annotations

import gc
from typing import Self

from rollbook_registry import cli
from rollbook_registry.runtime import Collector


class DefaultCollector(Collector):
    def __enter__(self) -> Self:
        super().__enter__()
        gc.set_threshold(*self._thresholds)
        return self

    def look(self) -> None:
        pass


if __name__ == "__main__":
    cli.Collector = DefaultCollector  # type: ignore[attr-defined]  # the very name that it looks up
    cli.main()
