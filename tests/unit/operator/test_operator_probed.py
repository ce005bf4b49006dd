"""Whether a readiness probe stands behind a port, so that the pod's readiness says something about it."""

from __future__ import annotations

import pytest

from rollbook_operator.desired import is_probed

PROBE = {"tcpSocket": {"port": 80}}


def _pod(*containers):
    return {"spec": {"containers": list(containers)}}


@pytest.mark.parametrize(
    ("pod", "probed"),
    [
        (_pod({"ports": [{"containerPort": 80}], "readinessProbe": PROBE}), True),
        (_pod({"ports": [{"containerPort": 80}]}), False),
        (_pod({"ports": [{"containerPort": 80}]}, {"readinessProbe": PROBE}), False),
        (_pod({"readinessProbe": PROBE}), True),
        (_pod({}), False),
    ],
    ids=["its own", "none", "another container's", "nobody declares the port", "nothing at all"],
)
def test_the_container_that_declares_the_port_decides(pod, probed):
    assert is_probed(pod, 80) is probed
