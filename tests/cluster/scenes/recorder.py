"""Runs in a pod: a caller. Follows a service at its own sidecar and writes down every state that it sees."""

import http.client
import json
import os
import time

SERVICE = os.environ["SERVICE"]


def say(**what):
    print(json.dumps({"t": time.time(), **what}), flush=True)


connection = http.client.HTTPConnection("127.0.0.1", 8849, timeout=30)
last, revision = None, ""
while True:
    path = f"/services/{SERVICE}"
    if revision:
        path += f"?wait=1s&revision={revision}"
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = json.load(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        say(error=repr(error))
        time.sleep(0.2)
        continue
    if answer.status != 200:
        state = {"status": answer.status, "code": body.get("code")}
        time.sleep(0.2)
    else:
        revision = body["revision"]
        state = {
            "stale": answer.headers["X-Rollbook-Stale"] == "true",
            "instances": {i["ip"]: i["healthy"] for i in body["instances"]},
        }
    if state != last:
        last = state
        say(**state)
