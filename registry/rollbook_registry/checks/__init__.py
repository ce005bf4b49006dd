"""Checks: whether persistent instances work, found out by asking them.

A persistent instance does not beat; the registry looks at it instead. What is asked (``probes``), when
(``schedule``), what a row of answers means (``verdict``) and where a check may reach at all (``reach``) are
a module each; ``checker`` puts them together.
"""

from __future__ import annotations

from rollbook_registry.checks.checker import Account, Checker, Meter
from rollbook_registry.checks.probes import Probes
from rollbook_registry.checks.reach import Reach
from rollbook_registry.checks.verdict import Answer, Finding, Reason, Target, Verdict

__all__ = [
    "Account",
    "Answer",
    "Checker",
    "Finding",
    "Meter",
    "Probes",
    "Reach",
    "Reason",
    "Target",
    "Verdict",
]
