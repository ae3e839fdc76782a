"""Requests made from the OpenAPI document, right and wrong ones: never a status of 500 or above."""

import copy
import json
import math
import random
import urllib.parse

import pytest

from tests.serve.conftest import serving

EACH = 14  # requests to every operation
TEXTS = [
    "", "a", "ana", "main", "base@ana", "user", "../../etc/passwd", "..\\..", "\0", "\ud800", "ä" * 300, "x" * 5000,
    "NaN", "%00", "' OR 1=1 --", "$(id)", "{{7*7}}", "\u202e", "2026-01-01", "-1", "\r\nSet-Cookie: a=b",
    "base@ana:../x",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 8, 0.5, 1.5, 1e-300, 1e308, 2**31, 2**62, 2**64, 10**400, math.nan, math.inf, -0.0, 1000]
ODD = [None, True, False, [], {}, [[]], "", 0, {"a": {"b": []}}, [None]]
RAW = [b"", b"null", b"[]", b"{", b'"x"', b"\xff\xfe\x00", b"[" * 30000, b'{"a":' * 4000, b"1e999", b"NaN",
       b'{"model": "base", "model": 3}', b"\xef\xbb\xbf{}", b"0" * 9000]  # fmt: skip


def value(chance, schema, parts, deep=0):
    """Something that the schema may allow, or something else."""
    if "$ref" in schema:
        schema = parts[schema["$ref"].rpartition("/")[2]]
    if chance.random() < 0.08:
        return copy.deepcopy(chance.choice(ODD + TEXTS + NUMBERS))
    if "anyOf" in schema:
        return value(chance, chance.choice(schema["anyOf"]), parts, deep)
    if "enum" in schema or "const" in schema:
        return chance.choice([*schema.get("enum", [schema.get("const")]), "other"])
    kind = schema.get("type")
    if kind == "object":
        found = {}
        needed, often = schema.get("required", []), chance.choice([0.0, 0.1, 0.4])
        for name, one in schema.get("properties", {}).items():
            if (name in needed and chance.random() < 0.97) or (name not in needed and chance.random() < often):
                known = name == "model" and chance.random() < 0.8
                found[name] = "base@ana" if known else value(chance, one, parts, deep + 1)
        if "additionalProperties" in schema and chance.random() < 0.1:
            found[chance.choice([name for name in TEXTS if name])] = chance.choice(NUMBERS)
        return found
    if kind == "array":
        return [value(chance, schema.get("items", {}), parts, deep + 1) for _ in range(chance.choice([0, 1, 1, 2, 9]))]
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 100)
        inside = chance.randint(int(low), int(min(high, low + 40))) if kind == "integer" else chance.uniform(low, high)
        return inside if chance.random() < 0.7 else chance.choice(NUMBERS)
    if kind == "boolean":
        return chance.random() < 0.5
    if kind == "string":
        return chance.choice(TEXTS[1:6]) if chance.random() < 0.7 else chance.choice(TEXTS)
    return copy.deepcopy(chance.choice(ODD))


def operations(document):
    """Method, path and what it takes."""
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            body = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            yield method.upper(), path, one.get("parameters", []), body


def made(chance, path, parameters, parts):
    """The path with its parameters in it."""
    query = {}
    for one in parameters:
        if one["in"] == "path":
            known = "base@ana" if one["name"] == "model" else "ana" if one["name"] == "name" else "job-x"
            text = known if chance.random() < 0.7 else str(value(chance, one["schema"], parts))
            raw = text.encode("utf-8", "surrogatepass") or b"%"
            path = path.replace("{" + one["name"] + "}", urllib.parse.quote(raw, safe=""))
        elif one.get("required") or chance.random() < 0.4:
            query[one["name"]] = str(value(chance, one["schema"], parts)).encode("utf-8", "surrogatepass")
    return path + ("?" + urllib.parse.urlencode(query) if query else "")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("fuzz") / "store", body=200_000, tokens=4, most_tokens=64) as server:
        yield server


def sent(server, method, path, content, kind="application/json"):
    """Its status; an error has OpenAI's form and tells nothing of this machine."""
    with server.http.stream(method, path, content=content, headers={"Content-Type": kind}) as reply:
        if path.split("?")[0].endswith("/events") and reply.status_code == 200:
            return 200
        told = reply.read().decode("utf-8", "replace") if "/export" not in path else ""
    if reply.status_code >= 400:
        assert told == "" or len(json.loads(told)["error"]["message"]) > 5, told
    assert "Traceback" not in told and str(server.service.settings.store) not in told and "/site-packages/" not in told
    return reply.status_code


def test_nothing_that_the_document_allows_or_not_is_an_error_of_the_server(target):
    chance, document = random.Random(7), target.http.get("/openapi.json").json()
    parts, seen = document["components"]["schemas"], {}
    found = list(operations(document))
    assert len(found) > 20
    for method, path, parameters, schema in found:
        often = 5 if path.endswith("/observe") else 1  # of these hardly one in thirty is right
        for _ in range(often * EACH):
            if "ana" not in target.service.reads.learners():
                target.make("ana")
            where = made(chance, path, parameters, parts)
            body = b"" if method == "GET" else b"text\n" if schema is None else None
            if body is None:
                body = json.dumps(value(chance, schema, parts)).encode("utf-8", "surrogatepass")
            status = sent(target, method, where, body)
            assert status < 500, (method, where, body[:300], status)
            seen.setdefault((method, path), set()).add(status // 100)
    # What is sent is not all refused at the door.
    good = {path for path, statuses in seen.items() if 2 in statuses}
    mine = "/v1/learners/{name}"
    assert {("POST", "/v1/chat/completions"), ("POST", f"{mine}/observe"), ("DELETE", mine),
            ("POST", f"{mine}/branch"), ("POST", f"{mine}/sleep"), ("GET", mine)} <= good, seen  # fmt: skip
    refused = {path for path, statuses in seen.items() if 4 in statuses}
    assert len(refused) > 15


def test_bodies_of_any_bytes_are_refused(target):
    document = target.http.get("/openapi.json").json()
    for method, path, _, schema in operations(document):
        if schema is None:
            continue
        where = path.replace("{name}", "ana")
        if "ana" not in target.service.reads.learners():
            target.make("ana")
        for raw in RAW:
            if path.endswith("/sleep") and raw.endswith(b"{}"):
                continue  # a night of which nothing is said has every default
            assert 400 <= sent(target, method, where, raw) < 500, (where, raw[:40])
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/json; charset=x",
        ):
            assert sent(target, method, where, b"a=b", kind) in (400, 415, 422), (where, kind)
