"""The socket that pushes over UDP go out of, and acknowledgements come back to.

Everything is decided in :mod:`rollbook_registry.push.datagrams`; here are the socket and the timer.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Final, Protocol, Self, cast

import structlog

from rollbook_registry.push import DatagramOutlet, Terms
from rollbook_registry.push.datagrams import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook.names import ServiceKey
    from rollbook_registry.metrics import UdpMeter
    from rollbook_registry.settings import RegistrySettings

log = structlog.get_logger("rollbook.registry")

SLICE: Final = 100
"""Datagrams that are written in one go; then others have their turn on the loop."""


class Dialect(Protocol):
    """What pushes and their acknowledgements look like; Nacos' is spoken by its door."""

    def push(self, service: ServiceKey, clusters: str, token: int) -> bytes:
        """As :class:`rollbook_registry.push.datagrams.Encode`."""

    def acknowledged(self, data: bytes) -> int | None:
        """Return the token that a datagram acknowledges; ``None`` if it is something else."""


class UdpPush(asyncio.DatagramProtocol):
    """Pushes over UDP.

    It is to be told of each change (:attr:`Book.changes <rollbook_registry.book.Book.changes>`), and a door
    subscribes its clients at :attr:`outlet`, with the address that their request came from.

    Args:
        dialect: what to say, and what to understand.
        terms: what subscribers may expect, and may cost.
        meter: counts.
        clock: monotonic seconds.
        wall: Unix time in seconds.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        terms: Terms,
        meter: UdpMeter,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._dialect = dialect
        self._meter = meter
        self._clock = clock
        self._transport: asyncio.DatagramTransport
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._soon: asyncio.Handle | None = None
        self._paused = False
        self.port = 0
        """The port that pushes come from."""
        self.outlet = DatagramOutlet(
            dialect.push,
            clock=clock,
            wake=self._wake,
            meter=meter,
            oversized=_oversized,
            terms=terms,
            first_token=int(wall() * 1_000_000),
        )

    @classmethod
    async def opened(cls, dialect: Dialect, settings: RegistrySettings, meter: UdpMeter) -> Self:
        """Open the socket on the registry's own address.

        Raises:
            OSError: the port cannot be had.
        """
        host, port = settings.host, settings.udp_port
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            # Of a name with addresses of both families: who still hears over UDP is older than IPv6's rise.
            family, *_, at = min(found, key=lambda one: one[0] != socket.AF_INET)
            terms = settings.udp_terms._replace(version=6 if family == socket.AF_INET6 else 4)
            _, protocol = await loop.create_datagram_endpoint(
                lambda: cls(dialect, terms=terms, meter=meter), local_addr=(str(at[0]), port), family=family
            )
        except OSError as error:
            raise OSError(
                f"cannot listen on {host} UDP port {port} (--udp-port): {error.strerror or error}"
            ) from None
        return protocol

    def close(self) -> None:
        """Be gone."""
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._paused = True
        self._transport.close()

    # --- what asyncio calls ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have the socket."""
        # uvloop's transports have the interface, and not the base class.
        self._transport = cast("asyncio.DatagramTransport", transport)
        self.port = int(transport.get_extra_info("sockname")[1])
        self._meter.subscriptions.set_function(lambda: len(self.outlet))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Hand on what may be an acknowledgement."""
        token = self._dialect.acknowledged(data)
        if token is None:
            self._meter.counted(Outcome.UNKNOWN)
        else:
            self.outlet.acknowledge(addr[0], addr[1], token)

    def error_received(self, exc: Exception) -> None:  # noqa: ARG002  # asyncio's
        """Count what the system says of a datagram that was sent before.

        Which one is not said. Mostly nobody listens there any more, who is forgotten for not answering.
        """
        self._meter.counted(Outcome.ERROR)

    def pause_writing(self) -> None:
        """Wait: the system's buffer is full, and what is ready is conflated meanwhile."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._wake()

    # --- sending ---------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._soon is None and not self._paused:
            self._soon = asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._soon = None
        if self._paused:
            return
        for sent, datagram in enumerate(self.outlet.take(), 1):
            self._transport.sendto(datagram.data, (datagram.address, datagram.port))
            if sent == SLICE or self._paused:
                break
        due = self.outlet.next_due()
        if due is not None and due <= self._clock():
            self._wake()
        elif due is not None:
            self._look_at(due)

    def _look_at(self, due: float) -> None:
        """Have :meth:`_send` called at a time; one timer serves all, and may come round for nothing."""
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = asyncio.get_running_loop().call_later(due - self._clock(), self._look)

    def _look(self) -> None:
        self._timer = None
        self._wake()


def _oversized(service: ServiceKey, size: int) -> None:
    log.warning(
        "too_large_for_udp",
        service=str(service),
        bytes=size,
        effect="its subscribers over UDP hear of changes only when they ask",
    )
