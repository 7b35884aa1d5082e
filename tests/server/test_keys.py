"""Keys: which requests are let in, what the server sees of them, and the file read again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.python.usage import UsageError
from twisted.web.http_headers import Headers

from llamaproxy.config.options import Options
from llamaproxy.errors import ProxyError
from llamaproxy.heads import RequestHead, RequestLine
from llamaproxy.server.keys import ApiKeys, keys_in, reread_keys
from llamaproxy.server.reload import ReloadService
from tests.chat.streams import stack_with
from tests.chat.test_memory import recalled, shared_turn
from tests.server.door import FrontDoor
from tests.support import CHAT, INVOKE, FakeStack, Proxy, answer, calling, saying, tool_result
from tests.test_twistd import Daemon, question, twistd
from tests.tools.mcp_servers import FakeMcp
from tests.tools.test_mcp_source import ONE, Hosts

ALICE, BOB, EVE = "sk-alice", "bob~/+=!", "sk-eve"

KeysFile = Callable[[str], ApiKeys]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{ALICE}\n{BOB}\n")
    return path


@pytest.fixture
def keys(path: Path) -> ApiKeys:
    return ApiKeys.read(str(path))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def head(*fields: tuple[str, str | bytes]) -> RequestHead:
    """That of a request with these *fields*."""
    line = RequestLine(b"GET", b"/v1/models", 1)
    encoded = [value.encode() if isinstance(value, str) else value for _, value in fields]
    return RequestHead(line, zip((name.encode() for name, _ in fields), encoded, strict=True))


def admitted(keys: ApiKeys, key: str) -> bytes:
    return keys.admit(head(("Api-Key", key)))


# --- the parser


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Bearer k"),
        ("authorization", "bearer k"),
        ("AUTHORIZATION", "BEARER k"),
        ("Authorization", "Bearer  \t k"),
        ("Authorization", "\tBearer k "),
        ("X-API-Key", "k"),
        ("x-api-key", " k\t"),
        ("Api-Key", "k"),
    ],
)
def test_a_key_may_be_spelled_in_many_ways(name: str, value: str) -> None:
    assert keys_in(head((name, value))) == {b"k"}


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({}, set()),
        ({"Authorization": [""], "X-API-Key": [" "], "Cookie": ["k"]}, set()),
        ({"Authorization": ["Bearer", "bearer "]}, set()),
        ({"Authorization": ["Bearer"], "Api-Key": ["k"]}, {b"k"}),
        ({"Authorization": ["Bearer k"], "X-API-Key": ["k", "k"], "Api-Key": ["k"]}, {b"k"}),
        ({"Authorization": ["Bearer k"], "X-API-Key": ["l"]}, {b"k", b"l"}),
        ({"Authorization": ["Bearer k", "Bearer l"]}, {b"k", b"l"}),
        ({"X-API-Key": ["k", "K"]}, {b"k", b"K"}),
        ({"X-API-Key": ["k, k"]}, {b"k, k"}),
        ({"Authorization": ["Basic azpr"]}, {b""}),
        ({"Authorization": ["k"]}, {b""}),
        ({"Authorization": ["Bearerk"]}, {b""}),
        ({"Authorization": ["Basic azpr"], "X-API-Key": ["k"]}, {b"", b"k"}),
    ],
)
def test_keys_are_counted_once_whatever_the_spelling(
    fields: dict[str, list[str]], keys: set[bytes]
) -> None:
    sent = [(name, value) for name, values in fields.items() for value in values]
    assert keys_in(head(*sent)) == keys


_visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)
_spellings = st.lists(
    st.sampled_from(
        [
            ("Authorization", "Bearer {}"),
            ("authorization", "bEaReR \t{} "),
            ("X-API-Key", "{}"),
            ("API-KEY", " {}"),
        ]
    ),
    min_size=1,
)


@given(st.lists(_visible, min_size=1, max_size=3), _spellings)
def test_what_was_put_in_is_found(keys: list[str], spellings: list[tuple[str, str]]) -> None:
    fields = [(name, form.format(key)) for name, form in spellings for key in keys]
    assert keys_in(head(*fields)) == {key.encode() for key in keys}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Authorization", "X-API-Key", "Api-Key"]),
            st.one_of(st.binary(max_size=20), st.binary(max_size=9).map(b"Bearer ".__add__)),
        )
    )
)
def test_nothing_that_a_client_sends_is_a_surprise(fields: list[tuple[str, bytes]]) -> None:
    sent = [(name, value.replace(b"\r", b"").replace(b"\n", b"")) for name, value in fields]
    some = ApiKeys("", (b"0" * 32,))
    with pytest.raises(ProxyError) as refused:
        some.admit(head(*sent))
    assert refused.value.status in (400, 401)


# --- the file


@pytest.mark.parametrize(
    "text",
    [
        b"sk-alice\nsk-bob\n",
        b"# of \xc3\x84nne\r\nsk-alice\r\n\r\n  # more\r\n \tsk-bob \r\nsk-bob",
        b"\xef\xbb\xbfsk-alice\n#\n\nsk-bob\n\n",
    ],
)
def test_one_key_a_line(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    keys = ApiKeys.read(str(path))
    assert len(keys) == 2
    assert len({admitted(keys, key) for key in ("sk-alice", "sk-bob")}) == 2
    for key in ("#", "# more", "sk-", "sk-alicesk-bob", "SK-BOB"):
        with pytest.raises(ProxyError):
            admitted(keys, key)


UNUSABLE = {
    "missing": (None, "No such file or directory"),
    "empty": (b"", "there is no key in it"),
    "blank": (b" \r\n\n\t", "there is no key in it"),
    "comments": (b"# sk-alice\n  # sk-bob\n", "there is no key in it"),
    "two keys in a line": (b"sk-alice\n\nsk-bob sk-carol\n", "line 3 is not one key"),
    "a comment after a key": (b"sk-alice # hers\n", "line 1 is not one key"),
    "a control character": (b"sk-\x00alice\n", "line 1 is not one key"),
    "not ASCII": ("sk-änne\n".encode(), "line 1 is not one key"),
    "not UTF-8": (b"sk-alice\n# \xe4\n", "it is not UTF-8"),
}


@pytest.mark.parametrize(("text", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_file_is_a_mistake(tmp_path: Path, text: bytes | None, reason: str) -> None:
    path = tmp_path / "unusable"
    if text is not None:
        path.write_bytes(text)
    for given_, environment, where in (
        (["--api-keys-file", str(path)], {}, "--api-keys-file"),
        ([], {"LLAMAPROXY_API_KEYS_FILE": str(path)}, "LLAMAPROXY_API_KEYS_FILE"),
    ):
        with pytest.raises(UsageError) as refused:
            Options(environment).parseOptions(given_)
        message = str(refused.value)
        assert message.startswith(f"{where} must name a file with one key a line ({reason}")
        assert "sk-" not in message


def test_a_directory_or_no_name_at_all_is_a_mistake(tmp_path: Path) -> None:
    for name in (str(tmp_path), ""):
        with pytest.raises(UsageError, match=r"^--api-keys-file must .*Is a directory"):
            Options({}).parseOptions(["--api-keys-file", name])


def test_the_file_is_found_again_from_another_directory(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    keys = ApiKeys.read(path.name)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    path.write_text(EVE)
    keys.reread()
    assert admitted(keys, EVE)


# --- the options


def parsed(**environment: str) -> Options:
    options = Options(environment)
    options.parseOptions([])
    return options


def test_no_key_is_wanted_unless_asked_for(path: Path) -> None:
    assert parsed()["api-keys-file"] is None
    assert parsed(LLAMAPROXY_API_KEYS_FILE="")["api-keys-file"] is None
    assert len(parsed(LLAMAPROXY_API_KEYS_FILE=str(path))["api-keys-file"]) == 2


def test_the_servers_key_comes_from_the_environment() -> None:
    assert parsed(LLAMASTACK_API_KEY=" sk-1\n")["llamastack-api-key"] == b"sk-1"
    for nothing in ({}, {"LLAMASTACK_API_KEY": ""}, {"LLAMASTACK_API_KEY": " "}):
        assert parsed(**nothing)["llamastack-api-key"] == b""


@pytest.mark.parametrize("key", ["Bearer hush", "hush\nX: 1", "hüsh", "hush\udcff", "hu\0sh"])
def test_a_servers_key_that_cannot_be_sent_is_a_mistake_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match=r"^LLAMASTACK_API_KEY must be one key") as refused:
        parsed(LLAMASTACK_API_KEY=key)
    assert "sh" not in str(refused.value)


# --- the door

#: A request of every kind that the proxy tells apart.
REQUESTS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/openai/v1/chat/completions"),
    ("GET", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models?api_key=sk-alice"),
    ("HEAD", "/v1/models"),
    ("POST", "/v1/files"),
    ("DELETE", "/v1/files/1"),
    ("OPTIONS", "/v1/models"),
    ("GET", "/"),
    ("GET", "//health"),
    ("GET", "/health/"),
    ("GET", "/health/..;/v1/models"),
    ("GET", "/%68ealth"),
    ("GET", "/HEALTH"),
    ("POST", "/health"),
    ("OPTIONS", "/health"),
    ("GET", "/live"),
    ("GET", "/no/such/%ff"),
]


@pytest.mark.parametrize(("method", "target"), REQUESTS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        bearer(EVE),
        bearer(ALICE[:-1]),
        bearer(f"{ALICE} {BOB}"),
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"X-API-Key": EVE},
        {"X-API-Key": f"Bearer {ALICE}"},
        {"Cookie": f"Authorization=Bearer {ALICE}"},
    ],
)
def test_without_a_key_nothing_gets_in(
    keys: ApiKeys, method: str, target: str, fields: dict[str, str]
) -> None:
    stack = FakeStack()
    body: object = {"messages": []} if method == "POST" else None
    refused = Proxy(stack, keys=keys, server_key=b"hush").request(method, target, body, fields)
    assert refused.status == 401
    assert refused.field("WWW-Authenticate") == 'Bearer realm="llamaproxy"'
    assert refused.field("Content-Type") == "application/json"
    assert stack.asked == []
    if method != "HEAD":
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert EVE not in error["message"]
        assert ALICE not in error["message"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("fields", [{}, bearer(EVE), bearer(ALICE)])
def test_anybody_may_ask_whether_the_proxy_is_well(
    keys: ApiKeys, method: str, fields: dict[str, str]
) -> None:
    stack = FakeStack()
    proxy = Proxy(stack, keys=keys)
    for more in ({}, {"Content-Length": "0"}):
        assert proxy.request(method, "/health?x", fields={**fields, **more}).status == 200
    assert stack.asked == []


@pytest.mark.parametrize(
    "fields",
    [
        {"Authorization": f"Bearer {ALICE}", "X-API-Key": BOB},
        {"Authorization": f"Bearer {ALICE}", "Api-Key": EVE},
        {"Authorization": "Basic YTpi", "X-API-Key": ALICE},
    ],
)
def test_two_different_keys_are_refused(keys: ApiKeys, fields: dict[str, str]) -> None:
    stack = FakeStack()
    refused = Proxy(stack, keys=keys).request("GET", "/v1/models", fields=fields)
    assert refused.status == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert ALICE not in refused.body.decode()
    assert stack.asked == []


PREFLIGHT = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize("target", ["/v1/models", "/v1/chat/completions"])
def test_a_preflight_which_cannot_have_a_key_passes_without_the_servers(
    keys: ApiKeys, target: str
) -> None:
    stack = FakeStack()
    stack.on(f"OPTIONS {target}", answer(b"", 200, {"Access-Control-Allow-Origin": "*"}))
    proxy = Proxy(stack, keys=keys, server_key=b"hush")
    allowed = proxy.request("OPTIONS", target, fields=PREFLIGHT)
    assert allowed.field("Access-Control-Allow-Origin") == "*"
    assert not stack.asked_for(f"OPTIONS {target}")[0].headers.hasHeader("Authorization")


@pytest.mark.parametrize(
    ("route", "body", "fields"),
    [
        ("GET /v1/models", None, PREFLIGHT),
        ("OPTIONS /v1/models", b"a body", PREFLIGHT),
        ("OPTIONS /v1/models", None, {"Origin": "http://page"}),
        ("GET /health", b"a body", {}),
    ],
)
def test_what_only_looks_as_if_anybody_might_send_it_needs_a_key(
    keys: ApiKeys, route: str, body: bytes | None, fields: dict[str, str]
) -> None:
    stack = FakeStack()
    method, target = route.split()
    assert Proxy(stack, keys=keys).request(method, target, body, fields).status == 401
    assert stack.asked == []


SPELLINGS = [
    bearer(ALICE),
    {"Authorization": f"bearer   {BOB}"},
    {"X-API-Key": ALICE},
    {"api-key": BOB},
    {"Authorization": f"Bearer {ALICE}", "X-Api-Key": ALICE, "Api-Key": ALICE},
]

FIELDS = ("Authorization", "X-API-Key", "Api-Key")


def shown(headers: Headers) -> list[str]:
    """Everything in *headers* that is a key."""
    return [value for name in FIELDS for value in headers.getRawHeaders(name, [])]


@pytest.mark.parametrize("fields", SPELLINGS)
@pytest.mark.parametrize("server_key", [b"", b"hush"])
def test_the_server_sees_its_own_key_or_none(
    keys: ApiKeys, fields: dict[str, str], server_key: bytes
) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("It is noon."))
    stack.on(INVOKE, tool_result("12:00"))
    stack.on("GET /v1/models", answer({"data": []}))
    proxy = Proxy(stack, keys=keys, server_key=server_key)
    assert proxy.request("GET", "/v1/models", fields=fields).status == 200
    assert proxy.chat(fields=fields).json()["choices"][0]["message"]["content"] == "It is noon."
    assert proxy.chat(fields=fields, stream=True).text() == "It is noon."
    seen = {each.path for each in stack.asked}
    assert seen >= {"/v1/version", "/v1/models", "/v1/tools", CHAT[5:], INVOKE[5:]}
    expected = ["Bearer hush"] if server_key else []
    assert [shown(each.headers) for each in stack.asked] == [expected] * len(stack.asked)


@pytest.mark.parametrize("sent", [{}, bearer(ALICE), {"authorization": "Basic x"}])
@pytest.mark.parametrize("with_keys", [False, True])
def test_a_key_for_the_server_is_sent_whatever_the_client_sends(
    keys: ApiKeys, sent: dict[str, str], with_keys: bool
) -> None:
    stack = FakeStack()
    stack.on(CHAT, saying("Hi."))
    fields = bearer(ALICE) if with_keys else sent
    proxy = Proxy(stack, keys=keys if with_keys else None, upstream_key=b"sk-of-the-server")
    assert proxy.chat({}, fields).status == 200
    assert proxy.request("GET", "/v1/models", None, fields).status == 404
    for asked in stack.asked:
        assert asked.headers.getRawHeaders("authorization") == ["Bearer sk-of-the-server"]


def test_a_field_that_connection_nominates_is_sent_as_ours_all_the_same(keys: ApiKeys) -> None:
    stack = FakeStack()
    fields = {**bearer(ALICE), "Connection": "Authorization"}
    Proxy(stack, keys=keys, server_key=b"hush").request("GET", "/x", fields=fields)
    assert shown(stack.asked[-1].headers) == ["Bearer hush"]


def test_an_mcp_server_gets_the_callers_token_for_it_and_no_key(keys: ApiKeys) -> None:
    stack, mcp = FakeStack(), FakeMcp("ping")
    stack.on("GET /v1/version", answer({"version": "0.7.3"}))
    connector = {"connector_id": "one", "url": ONE}
    stack.on("GET /v1beta/connectors", answer({"data": [connector]}))
    stack.on(CHAT, calling("ping"), saying("Done."))
    proxy = Proxy(stack, mcp=Hosts(one=mcp), keys=keys, server_key=b"hush")
    proxy.chat(fields=bearer(ALICE))
    assert mcp.asked
    assert [shown(each.headers) for each in mcp.asked] == [[]] * len(mcp.asked)
    mcp.asked.clear()
    provider_data = json.dumps({"mcp_headers": {ONE: {"Authorization": "Bearer hers"}}})
    proxy.chat(fields={**bearer(ALICE), "X-LlamaStack-Provider-Data": provider_data})
    assert mcp.asked
    assert {tuple(shown(each.headers)) for each in mcp.asked} == {("Bearer hers",)}
    connectors = stack.asked_for("GET /v1beta/connectors")
    assert [shown(each.headers) for each in connectors] == [["Bearer hush"]] * len(connectors)
    proxy.catalogue.stop()
    proxy.result(proxy.sessions.close())
    proxy.advance(60)


def test_clients_with_different_keys_share_neither_turns_nor_tools(keys: ApiKeys) -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack, keys=keys, server_key=b"hush")
    message = shared_turn(proxy, stack, "Oslo?", "12:00", fields=bearer(ALICE))
    listed = len(stack.asked_for("GET /v1/tools"))
    assert recalled(proxy, stack, "Oslo?", message, fields=bearer(BOB)) == ["one", "two"]
    assert len(stack.asked_for("GET /v1/tools")) == listed + 1
    again: dict[str, str] = {"X-API-Key": ALICE}
    assert recalled(proxy, stack, "Oslo?", message, fields=again) == ["one", "12:00", "two"]
    assert len(stack.asked_for("GET /v1/tools")) == listed + 1


@pytest.mark.parametrize("fields", [{}, bearer(EVE), {"Authorization": "Basic YTpi"}])
def test_without_a_file_any_value_passes_as_it_is(fields: dict[str, str]) -> None:
    stack = FakeStack()
    sent = {**fields, "X-API-Key": "one", "Api-Key": "other"}
    Proxy(stack).request("GET", "/v1/files", fields=sent)
    assert shown(stack.asked[-1].headers) == [*fields.values(), "one", "other"]


# --- the front door


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("target", ["/v1/files", "/v1/chat/completions", "/health"])
@pytest.mark.parametrize("field", ["", "Expect: 100-continue\r\n", f"X-API-Key: {EVE}\r\n"])
def test_without_a_key_no_byte_of_a_body_is_taken(
    keys: ApiKeys, framing: str, target: str, field: str
) -> None:
    door = FrontDoor(keys=keys)
    client = door.client()
    head = f"POST {target} HTTP/1.1\r\nHost: proxy\r\n{field}{framing}\r\n\r\n"
    [refused] = client.send(head.encode()).answers()
    assert refused.status == 401
    assert refused.fields["www-authenticate"] == ['Bearer realm="llamaproxy"']
    assert refused.fields["connection"] == ["close"]
    assert json.loads(refused.body)["error"]["code"] == "invalid_api_key"
    assert client.ended
    assert door.inside.passed == []


def test_a_connection_outlives_a_request_without_a_key_or_a_body(keys: ApiKeys) -> None:
    door = FrontDoor(keys=keys)
    client = door.client()
    for field in ("", f"Authorization: Bearer {ALICE}\r\n", f"Api-Key: {EVE}\r\n"):
        client.send(f"GET /v1/models HTTP/1.1\r\nHost: proxy\r\n{field}\r\n".encode())
    post = f"POST /v1/files HTTP/1.1\r\nHost: proxy\r\nApi-Key: {BOB}\r\nContent-Length: 2\r\n"
    client.send(f"{post}\r\nhi".encode())
    assert client.statuses() == [401, 200, 401, 200]
    assert [(passed.method, passed.body) for passed in door.inside.passed] == [
        (b"GET", b""),
        (b"POST", b"hi"),
    ]
    assert not client.ended
    for passed in door.inside.passed:
        assert not {name.lower() for name in passed.fields} & {b"authorization", b"api-key"}


# --- SIGHUP


class Here:
    """A reactor that calls at once what another thread, or a signal, asks for."""

    def callFromThread(self, call: Callable[[], None]) -> None:
        call()


def test_sighup_reads_the_file_again_while_the_service_runs(path: Path, keys: ApiKeys) -> None:
    before = signal.getsignal(signal.SIGHUP)
    here: Any = Here()
    service = ReloadService(here, [partial(reread_keys, keys)])
    service.startService()
    try:
        path.write_text(EVE)
        os.kill(os.getpid(), signal.SIGHUP)
        assert admitted(keys, EVE)
        with pytest.raises(ProxyError):
            admitted(keys, ALICE)
        for text in ("", "# nobody", "two keys", "\x00"):
            path.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            assert admitted(keys, EVE)
        path.unlink()
        os.kill(os.getpid(), signal.SIGHUP)
        assert len(keys) == 1
    finally:
        service.stopService()
    assert signal.getsignal(signal.SIGHUP) is before


def status_of(connection: http.client.HTTPConnection, key: str) -> int:
    connection.request("GET", "/v1/models", headers=bearer(key))
    response = connection.getresponse()
    response.read()
    return response.status


def reread(daemon: Daemon, word: str) -> None:
    """Send SIGHUP, and wait until the log says *word*."""
    daemon.process.send_signal(signal.SIGHUP)
    for _ in range(300):
        if word in daemon.log.read_text():
            return
        time.sleep(0.1)  # until the process has seen to it
    raise AssertionError(daemon.log.read_text())


def begin_stream(connection: http.client.HTTPConnection) -> Any:
    """A stream that lasts for two seconds, and has begun."""
    body = json.dumps(question("Wait 2 seconds, then what is 6*7?", stream=True))
    connection.request("POST", "/v1/chat/completions", body, headers=bearer(ALICE))
    return connection.getresponse()


def test_a_running_daemon_takes_new_keys_and_drops_no_connection(
    tmp_path: Path, path: Path
) -> None:
    arguments = ("--demo", "--api-keys-file", str(path))
    daemon = Daemon(tmp_path / "log", *arguments, LLAMASTACK_API_KEY="hush-hush")
    connection, streaming = (
        http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30) for _ in range(2)
    )
    try:
        assert daemon.get("/v1/models")[0] == 401
        assert [status_of(connection, key) for key in (ALICE, EVE, BOB)] == [200, 401, 200]
        stream = begin_stream(streaming)
        path.write_text(f"{EVE}\n")
        reread(daemon, "API keys read again: 1")
        assert [status_of(connection, key) for key in (ALICE, EVE, BOB)] == [401, 200, 401]
        path.write_text("")
        reread(daemon, "the API keys stay as they were: there is no key in it")
        assert [status_of(connection, key) for key in (ALICE, EVE)] == [401, 200]
        assert stream.read().endswith(b"data: [DONE]\n\n")
    finally:
        connection.close()
        streaming.close()
        assert daemon.stop() in (0, -signal.SIGTERM)
    log = daemon.log.read_text()
    assert log.count("the API keys stay as they were") == 1
    for secret in (ALICE, BOB, EVE, "hush"):
        assert secret not in log
    assert "Traceback" not in log


def test_a_daemon_that_drains_is_not_ended_by_sighup(tmp_path: Path, path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo", "--api-keys-file", str(path))
    streaming = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    try:
        stream = begin_stream(streaming)
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionError):
            while True:  # until it is stopping; a client is told nothing else
                daemon.get("/health")
        reread(daemon, "API keys read again: 2")
        assert stream.read().endswith(b"data: [DONE]\n\n")
        assert daemon.process.wait(30) in (0, -signal.SIGTERM)
    finally:
        streaming.close()
        daemon.process.kill()
        daemon.process.wait()


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_an_unusable_file_stops_the_start_with_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "empty":
        path.touch()
    result = twistd("llamaproxy", "--demo", "--api-keys-file", str(path))
    assert result.returncode == 1
    assert result.stderr.startswith("twistd llamaproxy: --api-keys-file must name a file")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_servers_key_that_is_not_used_is_told(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo", LLAMASTACK_API_KEY="hush-hush")
    assert daemon.get("/v1/models")[0] == 200
    daemon.stop()
    log = daemon.log.read_text()
    assert log.count("LLAMASTACK_API_KEY is not used") == 1
    assert "hush" not in log
