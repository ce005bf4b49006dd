"""The gRPC server on the port where Nacos' clients knock (their HTTP port and 1000).

Importing this loads gRPC, which costs memory: it is for those who open the port.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
import structlog

from rollbook.names import url_host
from rollbook_registry.api.nacos import refusal
from rollbook_registry.api.nacos.refusal import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook_registry.api.nacos.refusal import ErrorResponse

log = structlog.get_logger("rollbook.nacos")

MAX_MESSAGE_BYTES: Final = 10 * 1024 * 1024
"""What a Nacos server accepts in one message."""

SETUP_TIMEOUT: Final = 5.0
"""Seconds that a stream may stay without its first message; clients send it at once."""

CLOSE_GRACE: Final = 0.5
"""Seconds that calls have at the end. Answers take none; only a stream without its first message waits."""

_OPTIONS: Final = (
    # Else a second registry would share the port silently, and each get some of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)

_COUNTED: Final = {ErrorCode.UNPARSABLE: "bad_frame"}

_Context = grpc.aio.ServicerContext[Any, Any]


class Door:
    """The open port, before Nacos' protocol is spoken behind it.

    Args:
        refused: is told the code of each refusal, for the metrics.
        setup_timeout: see :data:`SETUP_TIMEOUT`.
    """

    def __init__(self, refused: Callable[[str], object], *, setup_timeout: float = SETUP_TIMEOUT) -> None:
        self._refused = refused
        self._setup_timeout = setup_timeout
        self._server: grpc.aio.Server | None = None
        self._told = False

    async def open(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Args:
            host: the address to listen on.
            port: 0 takes any.

        Raises:
            OSError: the port is taken, or there is no such address.
        """
        # gRPC does not tell its caller why it cannot bind; a socket does.
        probe = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
        probe.close()
        await probe.wait_closed()
        # No (de)serializers: gRPC would answer what cannot be parsed with an error of its own.
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "Request", {"request": grpc.unary_unary_rpc_method_handler(self._request)}
                ),
                grpc.method_handlers_generic_handler(
                    "BiRequestStream",
                    {"requestBiStream": grpc.stream_stream_rpc_method_handler(self._stream)},
                ),
            )
        )
        try:
            taken = server.add_insecure_port(f"{url_host(host)}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await server.start()
        self._server = server
        return taken

    async def close(self) -> None:
        """Stop listening, and end what is still under way after :data:`CLOSE_GRACE`."""
        if self._server is not None:
            await self._server.stop(CLOSE_GRACE)

    async def _request(self, data: bytes, context: _Context) -> bytes:
        """Answer ``/Request/request``."""
        error = refusal.refuse(data)
        self._refused(_COUNTED.get(error.error_code, "nacos_not_spoken"))
        self._tell(error, context.peer())
        return refusal.encode(error)

    def _tell(self, error: ErrorResponse, peer: str) -> None:
        # Clients may keep the message to themselves and try again for ever (nacos-sdk-python does): so the
        # first of them is told of here too.
        first = error.error_code is ErrorCode.INVALID_SERVER_STATUS and not self._told
        self._told |= first
        tell = log.warning if first else log.debug
        tell("nacos_refused", code=int(error.error_code), message=error.message, peer=peer)

    async def _stream(self, _: Any, context: _Context) -> None:
        """Answer ``/BiRequestStream/requestBiStream``: accept it, hear its first message, and close it.

        That message is a ConnectionSetupRequest, and there is nothing to offer: no connection is registered.
        Closing cleanly is enough, because without a registered connection official clients fail with the
        ServerCheck error first: Java, Python and Go (2.3.5) open the stream only after a good answer. Older
        Go SDKs don't look at it; they find the stream closed, and every request refused with the reason.
        """
        try:
            async with asyncio.timeout(self._setup_timeout):
                await context.read()
        except TimeoutError:
            log.debug("stream_without_setup", peer=context.peer())
