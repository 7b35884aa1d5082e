"""The admin port, in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from llamaproxy import __version__
from llamaproxy.admin.endpoint import AdminApp
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.reachability import Reachability
from llamaproxy.admin.serving import ThisProcess
from llamaproxy.admin.status import Status
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.config.logformat import Threshold, threshold
from llamaproxy.errors import (
    McpTimeout,
    McpUnavailable,
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from llamaproxy.events import CallEnded, GroupListed, ListRefreshed, Observers, RequestEnded
from llamaproxy.jsontext import Json
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord
from llamaproxy.server.site import ProxySite
from tests.support import outcome

DIALECT = {"name": "version 0.6.1", "version": "0.6.1"}


class Admin:
    """An admin port whose daemon drains when told, before a server that never answers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.draining = False
        self.dialect: Json | None = DIALECT
        self.metrics, self.tell = Metrics(self.clock.seconds), Observers()
        self.metrics.listen(self.tell)
        self.tools = ToolStatus(self.clock)
        self.questions: list[Deferred[int]] = []
        self.reachability = Reachability(self.clock, self._ask)
        figures = {"connections": lambda: {"open": 3, "max": 4}}
        status = Status(
            url="http://stack:8321",
            clock=self.clock,
            tools=self.tools,
            reachability=self.reachability,
            draining=lambda: self.draining,
            dialect=lambda: self.dialect,
            serving=ThisProcess(self.metrics, self.tools.calls, figures),
        )
        resource = AdminApp(status).resource()
        self._stub: Any = StubTreq(resource)
        # Treq's stub has a site of Twisted's.
        site: Any = ProxySite(resource, self.clock)
        self._stub._agent._serverFactory = site

    def _ask(self) -> Deferred[int]:
        self.questions.append(Deferred())
        return self.questions[-1]

    def ask(
        self, path: str, method: str = "GET", data: bytes | None = None, **fields: str
    ) -> tuple[int, Headers, str]:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        asked = self._stub.request(
            method, f"http://admin:8323{path}", headers=headers, data=data, allow_redirects=False
        )
        self._stub.flush()
        response = outcome(asked)
        return response.code, response.headers, outcome(response.text())

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        code, _, text = self.ask(path, method)
        return code, text

    def status(self) -> Json:
        got: Json = json.loads(self.get("/status")[1])
        return got


def failed_call() -> CallRecord:
    call = CallRecord(ChatRecord(), 1, 1, 0.0, "x", "a")
    call.began, call.ended, call.outcome = 0.0, 0.1, "failed"
    return call


def test_a_daemon_that_stops_is_live_and_not_ready() -> None:
    admin = Admin()
    assert admin.get("/live") == (200, '{"status":"live"}')
    code, text = admin.get("/ready")
    assert (code, json.loads(text)["status"]) == (200, "ready")
    admin.draining = True
    assert admin.get("/live") == (200, '{"status":"live"}')
    code, text = admin.get("/ready")
    assert (code, json.loads(text)["status"]) == (503, "draining")
    assert json.loads(text)["reason"] == "the daemon is stopping"


def test_a_probe_waits_for_nobody_and_has_the_server_asked_once() -> None:
    admin = Admin()
    for _ in range(10):
        assert admin.get("/ready")[0] == 200
    assert len(admin.questions) == 1


def test_a_server_that_cannot_be_reached_for_long_makes_it_unready() -> None:
    admin = Admin()
    admin.get("/ready")
    while admin.clock.seconds() < 30:
        admin.questions[-1].errback(UpstreamUnavailable("It is refused."))
        assert admin.get("/ready")[0] == 200
        admin.clock.advance(5)
    admin.questions[-1].errback(UpstreamUnavailable("It is refused."))
    code, text = admin.get("/ready")
    answer = json.loads(text)
    assert (code, answer["status"]) == (503, "upstream unreachable")
    where = "the server at http://stack:8321 cannot be reached"
    assert answer["reason"] == f"{where}: upstream_unavailable (It is refused.)"
    assert answer["upstream"]["reachable"] is False
    [advice] = [each for each in admin.status()["advice"] if each["problem"] == "unreachable"]
    assert advice["what"] == answer["reason"] and "--llamastack-url" in advice["do"]
    admin.clock.advance(5)
    admin.questions[-1].callback(200)
    assert admin.get("/ready")[0] == 200
    assert json.loads(admin.get("/ready")[1])["upstream"]["reachable"] is True


@pytest.mark.parametrize(
    ("dialect", "name"), [(None, "no_http"), ({"name": "x", "version": "0.6.1"}, "broke_off")]
)
def test_of_a_server_that_is_known_the_port_is_not_in_doubt(dialect: Any, name: str) -> None:
    admin = Admin()
    admin.dialect = dialect
    admin.get("/ready")
    admin.questions[-1].errback(UpstreamBroke("Llama Stack did not finish its answer."))
    [advice] = admin.status()["advice"]
    assert advice["problem"] == name


def test_credentials_that_are_refused_are_one_callers_trouble() -> None:
    admin = Admin()
    listed = ListRefreshed(1, {"a": GroupListed(("x",), "")}, {})
    refused = ListRefreshed(2, {}, {}, UpstreamRefused(401))

    def tell(event: ListRefreshed) -> None:
        admin.tell(event)
        admin.tools(event)

    def is_unknown() -> tuple[bool, bool]:
        text = admin.get("/metrics")[1]
        return admin.status()["tools"]["error"] is not None, (
            "llamaproxy_tool_groups_unknown 1.0" in text
        )

    tell(refused)
    assert is_unknown() == (True, True), "nobody has listed them yet"
    tell(listed)
    tell(refused)
    assert is_unknown() == (False, False) and admin.status()["advice"] == []
    assert "401" in admin.tools.failing(0)[""][0], "it is why that caller has no tools"
    admin.clock.advance(1)
    tell(refused)
    assert "401" in admin.tools.failing(0.5)[""][0], "it still is"
    assert "llamaproxy_tool_listing_failures_total 3.0" in admin.get("/metrics")[1]
    tell(ListRefreshed(2, {}, {}, UpstreamTimeout(), remembered={""}))
    assert is_unknown() == (False, False), "it is of before"
    admin.clock.advance(301)
    tell(refused)
    assert is_unknown() == (True, True), "nobody has for five minutes"


def test_missing_tools_are_said_and_do_not_make_it_unready() -> None:
    """DESIGN: L22."""
    admin = Admin()
    assert json.loads(admin.get("/ready")[1])["tools"]["known"] is False
    admin.tools(ListRefreshed(1, {}, {"b": McpUnavailable("refused")}))
    code, text = admin.get("/ready")
    tools = json.loads(text)["tools"]
    assert (code, tools["known"], tools["count"]) == (200, True, 0)
    assert tools["problems"] == ["the MCP server of b cannot be reached: mcp_unavailable (refused)"]
    assert [each["problem"] for each in admin.status()["advice"]] == ["group_unreachable"]


@pytest.mark.parametrize(("version", "name"), [("0.7.3", "no_groups"), ("", "plain_server")])
def test_it_is_said_why_there_are_no_tools_at_all(version: str, name: str) -> None:
    admin = Admin()
    admin.dialect = {"name": "x", "version": version}
    assert admin.status()["advice"] == []
    admin.tools(ListRefreshed(1, {}, {}))
    assert [each["problem"] for each in admin.status()["advice"]] == [name]
    admin.tools(ListRefreshed(1, {"a": GroupListed(("x",), "")}, {}))
    assert admin.status()["advice"] == []
    admin.tools(ListRefreshed(1, {}, {}, UpstreamTimeout("slow")))
    assert [each["problem"] for each in admin.status()["advice"]] == ["groups_failed"]


def test_tools_without_room_are_advised_on() -> None:
    admin = Admin()
    names = tuple(f"a/{n}" for n in range(2000))
    admin.tools(ListRefreshed(1, {"a": GroupListed(("x",), "")}, {}, None, names))
    [advice] = admin.status()["advice"]
    assert advice["problem"] == "left_out"
    assert advice["what"].startswith("2000 tools are not offered") and len(advice["what"]) < 700
    admin.tools(ListRefreshed(1, {}, {}, UpstreamTimeout("slow"), ()))
    assert [each["problem"] for each in admin.status()["advice"]] == ["groups_failed"]
    assert admin.status()["tools"]["left_out"] == []


def test_the_status_says_what_is_known_of_server_and_tools() -> None:
    admin = Admin()
    admin.tools(
        ListRefreshed(
            2, {"a": GroupListed(("x", "y"), "http://a/mcp")}, {"b": McpTimeout("slow")}, None
        )
    )
    admin.tools(CallEnded(failed_call()))
    code, text = admin.get("/status")
    status = json.loads(text)
    assert (code, status["version"], status["draining"]) == (200, __version__, False)
    upstream = {"url": "http://stack:8321", "server": "version 0.6.1", "dialect": DIALECT}
    assert status["upstream"] == {
        **upstream,
        **{"reachable": None, "answered_seconds_ago": None, "errors_in_a_row": 0},
        **{"last_error": None, "last_error_seconds_ago": None},
    }
    assert status["connections"] == {"open": 3, "max": 4}
    assert status["memory"]["resident_bytes"] > 1024 * 1024
    assert status["log_level"] == "info" and status["uptime_seconds"] == 0
    assert status["tool_groups"]["a"] == {
        **{"tools": 2, "names": ["x", "y"], "url": "http://a/mcp", "listed_seconds_ago": 0},
        **{"error": None, "error_seconds_ago": None, "calls": 1, "failed_calls": 1},
        "instructions": None,
    }
    assert status["tool_groups"]["b"]["error"] == "mcp_timeout (slow)"
    assert status["tools"] == {"error": None, "left_out": [], "callers": 2}


def test_what_happens_is_counted() -> None:
    admin = Admin()
    admin.tell(CallEnded(failed_call()))
    admin.tell(ListRefreshed(1, {}, {"b": McpTimeout()}, UpstreamTimeout()))
    request = RequestRecord("-", "-", "POST", "/v1/chat/completions", 0.0)
    request.kind = "upstream_timeout"
    admin.tell(RequestEnded(request))
    code, text = admin.get("/metrics")
    assert code == 200
    assert 'llamaproxy_tool_calls_total{group="a",outcome="failed",tool="x"} 1.0' in text
    assert "llamaproxy_tool_listing_failures_total 2.0" in text
    assert 'llamaproxy_errors_total{kind="upstream_timeout"} 1.0' in text


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/models", "GET"),
        ("/x/", "POST"),
        ("/live/", "GET"),
        ("/live/x", "GET"),
        ("/%ff", "GET"),
        ("/..%2flive", "GET"),
        ("/LIVE", "GET"),
    ],
)
def test_what_there_is_not_is_a_json_404_that_names_what_there_is(path: str, method: str) -> None:
    code, fields, text = Admin().ask(path, method)
    assert code == 404
    assert fields.getRawHeaders("content-type") == ["application/json"]
    assert fields.getRawHeaders("cache-control") == ["no-store"]
    assert "/status" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("path", ["/live", "/ready", "/status", "/metrics", "/log-level"])
def test_what_there_is_can_be_asked_for_by_head_and_is_kept_by_nobody(path: str) -> None:
    admin = Admin()
    assert admin.get(path, "HEAD") == (200, "")
    for method in ("GET", "HEAD"):
        assert admin.ask(path, method)[1].getRawHeaders("cache-control") == ["no-store"]


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/live", "POST", "GET, HEAD"),
        ("/status", "DELETE", "GET, HEAD"),
        ("/ready", "OPTIONS", "GET, HEAD"),
        ("/log-level", "PUT", "GET, HEAD, POST"),
    ],
)
def test_another_method_is_a_json_405_that_names_those_that_there_are(
    path: str, method: str, allowed: str
) -> None:
    code, fields, text = Admin().ask(path, method)
    assert code == 405
    assert fields.getRawHeaders("allow") == [allowed]
    assert fields.getRawHeaders("cache-control") == ["no-store"]
    assert allowed in json.loads(text)["error"]["message"]


@pytest.fixture
def level() -> Iterator[Threshold]:
    """The level of the log, which is as before afterwards."""
    before = threshold.level, threshold.in_use
    threshold.in_use = True
    yield threshold
    threshold.level, threshold.in_use = before


def set_level(admin: Admin, body: bytes, **fields: str) -> tuple[int, Any]:
    given = {"content_type": "application/json", **fields}
    code, _, text = admin.ask("/log-level", "POST", body, **given)
    return code, json.loads(text)


def test_the_log_level_is_changed_while_it_runs(level: Threshold) -> None:
    admin = Admin()
    for name in ("debug", "error", "warn", "info"):
        answer = {"level": name, "levels": ["debug", "info", "warn", "error"]}
        assert set_level(admin, b'{"level": "%b"}' % name.encode()) == (200, answer)
        assert json.loads(admin.get("/log-level")[1]) == answer
        assert level.level == name == admin.status()["log_level"]


@pytest.mark.parametrize(
    "body", [b"", b"debug", b"[]", b'{"level": "loud"}', b'{"level": ["debug"]}', b"{}", b"\xff"]
)
def test_what_is_no_level_changes_nothing(body: bytes, level: Threshold) -> None:
    code, answer = set_level(Admin(), body)
    assert (code, level.level) == (400, "info")
    assert "debug, info, warn, error" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"content_type": "text/plain"}, 415),
        ({"origin": "http://evil.example"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
    ],
)
def test_a_page_of_another_origin_does_not_change_it(
    fields: dict[str, str], status: int, level: Threshold
) -> None:
    assert set_level(Admin(), b'{"level": "debug"}', **fields)[0] == status
    assert level.level == "info"


def test_a_log_of_twistds_own_has_no_level(level: Threshold) -> None:
    level.in_use = False
    assert set_level(Admin(), b'{"level": "debug"}')[0] == 409
    assert json.loads(Admin().get("/log-level")[1])["level"] is None
