"""The admin port, in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.task import Clock

from llamaproxy import __version__
from llamaproxy.admin.endpoint import AdminApp
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.errors import McpTimeout, UpstreamTimeout
from llamaproxy.events import CallEnded, GroupListed, ListRefreshed, RequestEnded
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord
from tests.support import outcome


class Admin:
    """An admin port whose daemon drains when told."""

    def __init__(self) -> None:
        self.draining = False
        self.metrics = Metrics()
        self.tools = ToolStatus(Clock())
        app = AdminApp(
            self.metrics, lambda: self.draining, lambda: {"server": "0.6.1"}, self.tools.as_json
        )
        self._stub: Any = StubTreq(app.resource())

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        response = outcome(self._stub.request(method, f"http://admin:8323{path}"))
        self._stub.flush()
        return response.code, outcome(response.text())


def failed_call() -> CallRecord:
    call = CallRecord(ChatRecord(), 1, 1, 0.0, "x", "a")
    call.began, call.ended, call.outcome = 0.0, 0.1, "failed"
    return call


def test_a_daemon_that_stops_is_live_and_not_ready() -> None:
    admin = Admin()
    assert admin.get("/live") == (200, '{"status":"live"}')
    assert admin.get("/ready") == (200, '{"status":"ready"}')
    admin.draining = True
    assert admin.get("/live") == (200, '{"status":"live"}')
    assert admin.get("/ready") == (503, '{"status":"draining"}')


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
    assert status["upstream"] == {"server": "0.6.1"}
    assert status["tool_groups"]["a"] == {
        **{"tools": 2, "names": ["x", "y"], "url": "http://a/mcp", "listed_seconds_ago": 0},
        **{"error": None, "error_seconds_ago": None, "calls": 1, "failed_calls": 1},
    }
    assert status["tool_groups"]["b"]["error"] == "mcp_timeout (slow)"
    assert status["tools"] == {"error": None, "left_out": [], "callers": 2}


def test_what_happens_is_counted() -> None:
    admin = Admin()
    admin.metrics(CallEnded(failed_call()))
    admin.metrics(ListRefreshed(1, {}, {"b": McpTimeout()}, UpstreamTimeout()))
    request = RequestRecord("-", "-", "POST", "/v1/chat/completions", 0.0)
    request.kind = "upstream_timeout"
    admin.metrics(RequestEnded(request))
    code, text = admin.get("/metrics")
    assert code == 200
    assert 'llamaproxy_tool_calls_total{group="a",outcome="failed",tool="x"} 1.0' in text
    assert "llamaproxy_tool_listing_failures_total 2.0" in text
    assert 'llamaproxy_errors_total{kind="upstream_timeout"} 1.0' in text


@pytest.mark.parametrize(("path", "method"), [("/", "GET"), ("/v1/models", "GET"), ("/x/", "POST")])
def test_what_there_is_not_is_a_json_404_that_names_what_there_is(path: str, method: str) -> None:
    code, text = Admin().get(path, method)
    assert code == 404
    assert "/status" in json.loads(text)["error"]["message"]
