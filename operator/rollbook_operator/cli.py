"""The console script ``rollbook-operator``."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Final

import structlog
import uvloop

from rollbook import __version__, logs
from rollbook.kube import KubeError
from rollbook.problems import Problem
from rollbook.settings import command
from rollbook_operator.app import Operator, Superseded
from rollbook_operator.settings import OperatorSettings, kube_api

log = structlog.get_logger("rollbook.operator")

EXIT_USAGE: Final = 2


async def _run(settings: OperatorSettings) -> None:
    async with kube_api(settings.kubeconfig) as kube:
        await Operator(settings, kube).run()


@command(
    "rollbook-operator",
    OperatorSettings,
    summary="Enter annotated pods in the book, and strike out those that are gone.",
    version=__version__,
)
def main(settings: OperatorSettings) -> None:
    """Run the operator until it is told to end."""
    logs.set_up(settings.log_level, settings.log_format)
    # kopf tells each of its reconnections, which are ordinary.
    logging.getLogger("kopf").setLevel(logging.DEBUG if settings.log_level == "debug" else logging.ERROR)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings))
    except Problem as problem:
        log.error("cannot_start", detail=problem.detail)  # noqa: TRY400  # the sentence says all
        sys.exit(EXIT_USAGE)
    except Superseded as error:
        log.error(  # noqa: TRY400  # the sentence says all
            "superseded", detail=f"another operator took the Lease over after this one: {error}"
        )
        sys.exit(1)
    except KubeError as error:
        log.error("api_refused", detail=str(error))  # noqa: TRY400  # the sentence says all
        sys.exit(1)
    except (RuntimeError, OSError):
        log.exception("failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
