"""The console script ``rollbook-webhook``."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import structlog
import uvloop

from rollbook import __version__, logs
from rollbook.problems import Problem
from rollbook.settings import command
from rollbook_operator.settings import kube_api
from rollbook_operator.webhook.app import Webhook
from rollbook_operator.webhook.settings import WebhookSettings

log = structlog.get_logger("rollbook.webhook")

EXIT_USAGE: Final = 2


async def _run(settings: WebhookSettings) -> None:
    async with kube_api(settings.kubeconfig) as kube:
        await Webhook(settings, kube).run()


@command(
    "rollbook-webhook",
    WebhookSettings,
    summary="Put a sidecar beside annotated pods as they are created.",
    version=__version__,
)
def main(settings: WebhookSettings) -> None:
    """Run the webhook until it is told to end."""
    logs.set_up(settings.log_level, settings.log_format)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings))
    except Problem as problem:
        log.error("cannot_start", detail=problem.detail)  # noqa: TRY400  # the sentence says all
        sys.exit(EXIT_USAGE)
    except (RuntimeError, OSError):
        log.exception("failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
