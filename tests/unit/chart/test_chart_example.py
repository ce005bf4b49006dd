"""The sample application: what its manifests promise, and that its two programs do what they say."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from ports import free_port

EXAMPLE = Path(__file__).parents[3] / "examples" / "orders"
OBJECTS = {
    (item["kind"], item["metadata"]["name"]): item
    for name in ("orders.yaml", "caller.yaml")
    for item in yaml.safe_load_all((EXAMPLE / name).read_text())
}


def pod(name):
    return OBJECTS["Deployment", name]["spec"]["template"]


def test_orders_has_nothing_but_its_annotation():
    assert pod("orders")["metadata"]["annotations"] == {"rollbook.io/register": "true"}
    assert OBJECTS["Deployment", "orders"]["spec"]["replicas"] == 3
    (container,) = pod("orders")["spec"]["containers"]
    assert "env" not in container
    assert "lifecycle" not in container


def test_the_caller_only_asks_for_a_sidecar():
    assert pod("caller")["metadata"]["annotations"] == {"rollbook.io/inject": "true"}


@pytest.mark.parametrize("name", ["orders", "caller"])
def test_its_pods_satisfy_the_restricted_standard(name):
    spec = pod(name)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["readinessProbe"]


@contextlib.contextmanager
def running(name: str, directory: Path, **replaced: str):
    """Run a program of the example as it is in its ConfigMap, at another port; gives its URL and process."""
    port = free_port()
    text = OBJECTS["ConfigMap", name]["data"][f"{name}.py"].replace('("", 8080)', f'("127.0.0.1", {port})')
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    script = directory / f"{name}.py"
    script.write_text(text)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            assert b"listening" in process.stdout.readline()
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()


def get(url: str):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def test_orders_answers_with_its_pod_and_ends_when_told_to(tmp_path):
    with running("orders", tmp_path) as (url, process):
        assert get(f"{url}/healthz")["service"] == "orders"
        assert get(f"{url}/x") == {"service": "orders", "pod": socket.gethostname(), "path": "/x"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


class Book(http.server.BaseHTTPRequestHandler):
    """Answers a lookup with what its class was given, and a call with `hello`."""

    instances: list = []  # noqa: RUF012  # replaced as a whole by the test

    def do_GET(self):
        listing = self.path.startswith("/services/")
        body = json.dumps({"instances": self.instances} if listing else "hello").encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_caller_calls_what_it_finds(tmp_path, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Book) as book:
        threading.Thread(target=book.serve_forever, daemon=True).start()
        there = {"ip": "127.0.0.1", "port": book.server_port}
        lookup = f"127.0.0.1:{book.server_port}"
        with running("caller", tmp_path, **{"localhost:8849": lookup}) as (url, process):
            with pytest.raises(urllib.error.HTTPError, match="502") as failed:
                get(url)
            assert json.load(failed.value) == {"error": "orders has no healthy instance"}
            monkeypatch.setattr(Book, "instances", [there])
            assert get(url) == "hello"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        book.shutdown()


def test_what_stands_in_for_curl_shows_answers_and_errors(tmp_path):
    script = tmp_path / "curl"
    script.write_text(OBJECTS["ConfigMap", "caller"]["data"]["curl"])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Book) as book:
        threading.Thread(target=book.serve_forever, daemon=True).start()
        command = [sys.executable, str(script), "-i", f"127.0.0.1:{book.server_port}/services/orders"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("200 OK")
        assert json.loads(done.stdout.splitlines()[-1]) == {"instances": []}
        book.shutdown()
    command = [sys.executable, str(script), f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("curl: ")
