"""The port of Nacos' gRPC, by a real client: every call is answered, and honestly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2

from rollbook_registry.api.nacos import payload, refusal
from rollbook_registry.api.nacos.door import Door
from rollbook_registry.server import Server
from rollbook_registry.settings import RegistrySettings

BIN = Path(sys.executable).parent
PROTO = Path(payload.__file__).with_name("nacos.proto")
TIMEOUT = 10


def wire(kind=b"", body=b"", extra=b""):
    """An envelope, byte by byte as the protobuf encoding wants it, without the code under test."""

    def field(number, value):
        length = len(value)
        size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
        return bytes([number << 3 | 2]) + size + value

    return field(2, (field(3, kind) if kind else b"") + extra) + field(3, field(2, body))


def unwire(data):
    """What is in an answer: its type, and its body."""
    found = payload.decode(data)
    return found.type, json.loads(found.body)


@pytest.fixture
async def registry(start):
    return await start(nacos_grpc=True, grpc_port=0)


@pytest.fixture
async def channel(registry):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{registry.server.grpc_port}") as channel:
        yield channel


@pytest.fixture
def ask(channel):
    async def ask(data):
        # A gRPC error would be raised here: the status is OK.
        return unwire(await channel.unary_unary("/Request/request")(data, timeout=TIMEOUT))

    return ask


@pytest.fixture
def stream(channel):
    return channel.stream_stream("/BiRequestStream/requestBiStream")


# --- the envelope -----------------------------------------------------------------------------------------


def test_an_envelope_is_read_as_protobuf_writes_it():
    header = b"\x3a\x0a\x0a\x03app\x12\x03foo"  # headers: {"app": "foo"}
    address = b"\x42\x0810.0.0.1"
    read = payload.decode(wire(b"InstanceRequest", b'{"a":1}', header + address))
    assert read == payload.Payload("InstanceRequest", b'{"a":1}')


def test_an_envelope_is_written_as_protobuf_reads_it():
    # The body's type_url (its field 1) is not there: Nacos' clients expect none.
    assert payload.encode(payload.Payload("ErrorResponse", b"{}")) == wire(b"ErrorResponse", b"{}")


def _spelled(file):
    """Write messages the way a .proto file does."""
    kinds = {descriptor_pb2.FieldDescriptorProto.TYPE_STRING: "string"}
    lines = [f'import "{name}";' for name in file.dependency]
    for message in file.message_type:
        maps = {f".{message.name}.{n.name}": n for n in message.nested_type if n.options.map_entry}
        lines.append(f"message {message.name} {{")
        for field in message.field:
            entry = maps.get(field.type_name)
            if entry is None:
                kind = kinds.get(field.type) or field.type_name.removeprefix(".")
            else:
                key, value = (kinds[f.type] for f in entry.field)
                kind = f"map<{key}, {value}>"
            repeated = field.label == field.LABEL_REPEATED and entry is None
            lines.append(f"{'repeated ' if repeated else ''}{kind} {field.name} = {field.number};")
        lines.append("}")
    return lines


def test_the_proto_file_describes_what_is_spoken():
    described = payload.describe()
    text = PROTO.read_text().partition("service ")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("//")]
    assert lines == [f'syntax = "{described.syntax}";', *_spelled(described)]


# --- requests ---------------------------------------------------------------------------------------------


async def test_a_server_check_is_told_that_the_protocol_is_not_spoken(ask):
    kind, body = await ask(wire(b"ServerCheckRequest", b'{"requestId":"7","module":"internal"}'))
    assert kind == "ErrorResponse"
    message = body.pop("message")
    assert body == {"resultCode": 500, "errorCode": 300, "requestId": "7", "success": False}
    assert "does not speak Nacos' naming protocol yet" in message
    assert "docs/limits.md" in message


@pytest.mark.parametrize("name", ["InstanceRequest", "HealthCheckRequest", "NoSuchRequest", "x" * 1000])
async def test_any_other_request_has_no_handler(ask, name):
    kind, body = await ask(wire(name.encode(), b'{"headers":{},"requestId":"a","serviceName":"orders"}'))
    assert (kind, body["errorCode"], body["success"]) == ("ErrorResponse", 302, False)
    assert name[:80] in body["message"]
    assert name[:81] not in body["message"] or len(name) <= 80
    assert body["requestId"] == "a"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"requestId":null}', b'{"requestId":""}'])
async def test_a_request_without_an_id_gets_an_empty_one(ask, body):
    _, answer = await ask(wire(b"ServerCheckRequest", body))
    assert (answer["errorCode"], answer["requestId"]) == (300, "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1", "not a Payload"),
        (b"\xff" * 50, "not a Payload"),
        (wire(b"\xff\xfe", b"{}"), "not a Payload"),
        (b"", "metadata.type is empty"),
        (wire(b"", b"{}"), "metadata.type is empty"),
        (wire(b"ServerCheckRequest", b"{"), "body of ServerCheckRequest"),
        (wire(b"InstanceRequest", b"[]"), "object"),
        (wire(b"InstanceRequest", b'{"requestId":5}'), "requestId"),
        (wire(b"InstanceRequest", b'{"requestId":"\xff"}'), "body of InstanceRequest"),
        (wire(b"InstanceRequest", b'{"deep":' + b"[" * 10_000), "recursion"),
    ],
)
async def test_what_cannot_be_read_is_answered_in_the_protocols_form_too(ask, data, said):
    kind, body = await ask(data)
    assert kind == "ErrorResponse"
    assert body["errorCode"] == 502
    assert body["success"] is False
    assert said in body["message"]


async def test_refusals_are_counted(registry, ask):
    def counted(code):
        return registry.book.metrics.registry.get_sample_value("rollbook_refusals_total", {"code": code})

    await ask(wire(b"ServerCheckRequest", b"{}"))
    await ask(wire(b"InstanceRequest", b"{}"))
    await ask(b"\xff")
    assert (counted("nacos_not_spoken"), counted("bad_frame")) == (2, 1)


# --- the stream -------------------------------------------------------------------------------------------


async def test_a_stream_is_accepted_and_closed_cleanly_after_its_setup(stream):
    call = stream(timeout=TIMEOUT)
    await call.write(wire(b"ConnectionSetupRequest", b'{"tenant":"public","abilityTable":{}}'))
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_whose_client_ends_it_unused_is_closed_cleanly(stream):
    call = stream(timeout=TIMEOUT)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_that_says_nothing_is_not_kept():
    door = Door(lambda code: None, setup_timeout=0.05)
    port = await door.open("127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/BiRequestStream/requestBiStream")(timeout=TIMEOUT)
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
    finally:
        await door.close()


async def test_requests_are_answered_beside_an_open_stream(stream, ask):
    call = stream(timeout=TIMEOUT)
    assert (await ask(wire(b"ServerCheckRequest", b"{}")))[1]["errorCode"] == 300
    await call.write(wire(b"ConnectionSetupRequest", b"{}"))
    assert await call.read() is grpc.aio.EOF


# --- the port ---------------------------------------------------------------------------------------------


async def test_a_port_that_another_registry_has_is_not_shared(registry, tmp_path):
    port = registry.server.grpc_port
    settings = RegistrySettings(
        data_dir=tmp_path / "another", http_port=0, session_port=0, grpc_port=port, auth="none"
    )
    server = Server(settings)
    with pytest.raises(OSError, match=rf"127\.0\.0\.1 port {port} \(--grpc-port\).*address already in use"):
        await server.__aenter__()
    # What it had opened before is closed again.
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.session_port)


async def test_it_is_closed_with_the_registry(start):
    registry = await start(nacos_grpc=True, grpc_port=0)
    await registry.server.__aexit__(None, None, None)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", registry.server.grpc_port)


async def test_it_listens_on_an_ipv6_address_too():
    door = Door(lambda code: None)
    try:
        port = await door.open("::1", 0)
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback here: {error}")
    try:
        async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
            answer = await channel.unary_unary("/Request/request")(wire(b"X", b"{}"), timeout=TIMEOUT)
        assert unwire(answer)[1]["errorCode"] == 302
    finally:
        await door.close()


@pytest.fixture
async def run(tmp_path):
    """Run the command, as users start it (on uvloop), and return it with the first line that it logs."""
    processes = []

    async def run(*flags):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ROLLBOOK_")}
        process = await asyncio.create_subprocess_exec(
            BIN / "rollbook-registry",
            *("--data-dir", str(tmp_path), "--http-port", "0", "--session-port", "0", "--auth", "none"),
            *flags,
            env=clean,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        async with asyncio.timeout(60):
            return process, json.loads(await process.stderr.readline())

    yield run
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def loaded(process):
    return "cygrpc" in Path(f"/proc/{process.pid}/maps").read_text()


linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")


@linux
async def test_the_command_opens_it_tells_of_the_first_client_and_ends_with_open_streams(run):
    process, serving = await run("--grpc-port", "0")
    assert (serving["event"], loaded(process)) == ("serving", True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{serving['grpc']}") as channel:
        request = channel.unary_unary("/Request/request")
        await request(b"\xff", timeout=TIMEOUT)
        for _ in range(2):
            await request(wire(b"ServerCheckRequest", b"{}"), timeout=TIMEOUT)
        call = channel.stream_stream("/BiRequestStream/requestBiStream")(timeout=TIMEOUT)
        await call.wait_for_connection()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT):
            logged = (await process.stderr.read()).splitlines()
            assert await process.wait() == 0
    events = [json.loads(line) for line in logged]
    assert [e["event"] for e in events] == ["nacos_refused", "stopped"]
    assert (events[0]["level"], events[0]["code"]) == ("warning", 300)


@linux
async def test_the_command_can_do_without_it(run):
    process, serving = await run("--nacos-grpc", "false")
    assert (serving["event"], serving["grpc"], loaded(process)) == ("serving", "off", False)


async def test_a_taken_port_ends_the_command_with_a_message_that_names_the_flag(run):
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        process, said = await run("--grpc-port", str(port))
        async with asyncio.timeout(TIMEOUT):
            rest = await process.stderr.read()
            assert await process.wait() == 1
    assert said["event"] == "cannot_start"
    assert f"port {port} (--grpc-port)" in said["error"]
    assert rest == b""


def test_the_error_has_every_field_that_clients_look_for():
    kind, body = unwire(refusal.encode(refusal.refuse(b"")))
    assert kind == "ErrorResponse"
    assert set(body) == {"resultCode", "errorCode", "message", "requestId", "success"}
