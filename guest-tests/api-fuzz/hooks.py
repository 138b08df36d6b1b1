# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What schemathesis has to know of this API beyond its description.

The VM under test really ends, resets and pauses. `XTASK_ENDS_UNTIL`, in seconds
since 1970, says until when it may be ended; from then on one process is watched
for growth. `guest-tests/src/cases/api/fuzz.rs` starts it again.
"""

import ast
import json
import os
import re
import threading
import time

import jsonschema_rs
import schemathesis

ENDS_UNTIL = float(os.environ.get("XTASK_ENDS_UNTIL", "0"))
# Seconds between two ends, and between two resets: a guest has to come up between them.
BETWEEN = {"end": 60, "reset": 30}
ACTIONS = {"kill": "end", "shutdown": "end", "reset": "reset", "reboot": "reset"}
# The longest deadline that a request may have, in milliseconds: a worker waits for it.
LONGEST = 20_000

# What a JSON schema cannot say: lengths in UTF-16 units and bytes, numbers in a text, and
# what only the guest's daemon or a name's use rules out.
BEYOND_SCHEMA = re.compile(
    r"UTF-16 units long, and \d+ are the most"
    r"|bytes long in the guest's UTF-8, and \d+ are the most"
    r"|is no number of (32|64) bits"
    r"|a service's name"
    r"|is a port or a GUID, not a name"
    r"|hv_fcopy_(uio_)?daemon"
    r"|is not percent-encoded UTF-8"
)

# Two threads that parse at once make CPython 3.11 raise "AST constructor recursion depth
# mismatch", and Hypothesis parses the lambdas that it describes.
parse, parsing = ast.parse, threading.Lock()


def parse_one_by_one(*args, **kwargs):
    with parsing:
        return parse(*args, **kwargs)


ast.parse = parse_one_by_one

lock = threading.Lock()
last = {"end": 0.0, "reset": 0.0}


def may(kind):
    """Whether it is time for an end or a reset again."""
    now = time.time()
    with lock:
        if now - last[kind] < BETWEEN[kind] or (kind == "end" and now > ENDS_UNTIL):
            return False
        last[kind] = now
        return True


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict):
        return
    kind = ACTIONS.get(body.get("action")) if isinstance(body.get("action"), str) else None
    if kind and not may(kind):
        body["action"] = "resume"
    for name in ("timeout_ms", "max_ms"):
        value = body.get(name)
        # Beyond what is allowed it is to be refused.
        most = {"timeout_ms": 1 << 64, "max_ms": 900_001}[name]
        if isinstance(value, (int, float)) and LONGEST < value < most:
            body[name] = LONGEST


@schemathesis.hook
def filter_failure(context, failure, case, response):
    if type(failure).__name__ != "RejectedPositiveData" or response.status_code != 400:
        return True
    message = json.loads(response.content)["error"]["message"]
    return BEYOND_SCHEMA.search(message) is None


def lines(content):
    """The whole lines: a stream may be cut in the last one."""
    whole, _, _ = content.rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n") if line]


@schemathesis.deserializer("application/x-ndjson")
def first_line(context, response):
    return next(iter(lines(response.content)), {})


@schemathesis.check
def each_line_is_described(ctx, response, case):
    kind = response.headers.get("content-type", [""])[0]
    if "x-ndjson" not in kind:
        return
    raw = case.operation.schema.raw_schema
    name = "Event" if case.operation.path == "/v1/events" else "Traffic"
    schema = {**raw["components"]["schemas"][name], "components": raw["components"]}
    validator = jsonschema_rs.validator_for(schema)
    for line in lines(response.content):
        for error in validator.iter_errors(line):
            raise AssertionError(f"{json.dumps(line)}: {error.message}")
