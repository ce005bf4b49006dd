"""Runs in a pod: the application. On TERM it writes down when, and whom its own sidecar still lists."""

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IP = os.environ["POD_IP"]
SERVICE = os.environ["SERVICE"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = IP.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def say(**what):
    print(json.dumps({"t": time.time(), "ip": IP, **what}), flush=True)


def ask_own_sidecar():
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:8849/services/{SERVICE}", timeout=2) as answer:
            return [i["ip"] for i in json.load(answer)["instances"]]
    except OSError as error:
        return f"no sidecar: {error}"


server = ThreadingHTTPServer(("", 8080), Handler)


def on_term(*_):
    say(event="term", listed=ask_own_sidecar())
    threading.Thread(target=server.shutdown).start()


signal.signal(signal.SIGTERM, on_term)
say(event="start")
server.serve_forever()
say(event="end")
sys.exit(0)
