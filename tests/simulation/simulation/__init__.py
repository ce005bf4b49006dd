"""A deterministic simulation of replicas, their network and their clients: one seed, one run.

The replicas are real (catalog, Distro core, expiry, protection, views); time, network and faults are made up
from the seed. ``python -m simulation SEED --trace`` (with ``tests/simulation`` on the path) replays a run.
"""

from __future__ import annotations

from simulation.run import Result, simulate

__all__ = ["Result", "simulate"]
