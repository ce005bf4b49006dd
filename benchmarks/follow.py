"""Runs in a pod, with nothing but the standard library: writes down each list of a service, and when it came.

Each line is a JSON array: Unix time, and for each pod (by UID) whether its instance is healthy.
"""

from __future__ import annotations

import http.client
import json
import sys
import time


def main() -> None:
    """Follow the service that the command line names."""
    connection = http.client.HTTPConnection("127.0.0.1", 8849, timeout=60)
    path = f"/services/{sys.argv[1]}"
    revision = ""
    while True:
        try:
            connection.request("GET", f"{path}?wait=30s&revision={revision}" if revision else path)
            answer = connection.getresponse()
            came = time.time()
            body = json.load(answer)
        except (OSError, http.client.HTTPException, ValueError):
            connection.close()
            time.sleep(0.05)  # its sidecar is not there yet
            continue
        if answer.status == 200:
            revision = body["revision"]
            print(json.dumps([came, {i["owner"]: i["healthy"] for i in body["instances"]}]), flush=True)


if __name__ == "__main__":
    main()
