"""Which server is this, and where are its paths?"""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs, formatEvent

from llamaproxy.errors import ProxyError, UpstreamRefused, UpstreamTimeout
from llamaproxy.upstream.client_context import LLAMA_STACK_PROVIDER_DATA, OGX_PROVIDER_DATA
from llamaproxy.upstream.dialect import PLAIN_OPENAI, ServerDialect, dialect_of
from tests.support import Answer, FakeStack, Upstream, answer, hang_up, nothing, recorded


@pytest.mark.parametrize(
    ("version", "prefix", "tool_runtime"),
    [
        ("0.2.12", "/v1/openai/v1", True),
        ("0.2.24", "/v1/openai/v1", True),
        ("0.3.5", "/v1/openai/v1", True),
        ("0.4.0", "/v1", True),
        ("v0.6.1", "/v1", True),
        ("0.6.1.dev3+g1234", "/v1", True),
        ("0.7.0", "/v1", False),
        ("0.10.2", "/v1", False),
        ("1.5.0", "/v1", False),
        ("", "/v1", False),
        ("unknown", "/v1", False),
    ],
)
def test_a_version_belongs_to_a_generation(version: str, prefix: str, tool_runtime: bool) -> None:
    """DESIGN: T1."""
    generation = dialect_of(version)
    assert (generation.openai_prefix, generation.tool_runtime) == (prefix, tool_runtime)
    assert generation.version == version


@pytest.mark.parametrize(
    ("version", "connectors", "provider_data", "mcp_headers"),
    [
        ("0.2.12", "/v1/toolgroups", LLAMA_STACK_PROVIDER_DATA, "kept"),
        ("0.3.5", "/v1/toolgroups", LLAMA_STACK_PROVIDER_DATA, "kept"),
        ("0.4.7", "/v1/toolgroups", LLAMA_STACK_PROVIDER_DATA, "apart"),
        ("0.5.4", "/v1alpha/connectors", LLAMA_STACK_PROVIDER_DATA, "apart"),
        ("0.6.1", "/v1alpha/connectors", LLAMA_STACK_PROVIDER_DATA, "apart"),
        ("0.7.3", "/v1beta/connectors", LLAMA_STACK_PROVIDER_DATA, "dropped"),
        ("0.8.0", "/v1beta/connectors", OGX_PROVIDER_DATA, "dropped"),
        ("1.0.4", "/v1alpha/admin/connectors", OGX_PROVIDER_DATA, "dropped"),
        ("1.5.0", "/v1alpha/admin/connectors", OGX_PROVIDER_DATA, "dropped"),
        ("", "/v1alpha/admin/connectors", OGX_PROVIDER_DATA, "dropped"),
    ],
)
def test_a_generation_knows_where_its_mcp_servers_are_named_and_how_it_takes_credentials(
    version: str, connectors: str, provider_data: bytes, mcp_headers: str
) -> None:
    generation = dialect_of(version)
    assert generation.connectors[0] == connectors
    assert generation.provider_data == provider_data
    assert generation.mcp_headers == mcp_headers


def test_a_plain_server_names_no_mcp_servers() -> None:
    assert PLAIN_OPENAI.connectors == ()


OLD = dialect_of("0.3.5")
NEW = dialect_of("0.6.1")


@pytest.mark.parametrize(
    ("method", "path", "old", "new"),
    [
        ("GET", "/v1/models", "/v1/openai/v1/models", "/v1/models"),
        ("HEAD", "/v1/models", "/v1/openai/v1/models", "/v1/models"),
        ("POST", "/v1/models", "/v1/models", "/v1/models"),
        ("GET", "/v1/models/", "/v1/models/", "/v1/models/"),
        ("GET", "/v1/models/vllm/x", "/v1/models/vllm/x", "/v1/models/vllm/x"),
        ("DELETE", "/v1/models/x", "/v1/models/x", "/v1/models/x"),
        ("POST", "/v1/embeddings", "/v1/openai/v1/embeddings", "/v1/embeddings"),
        ("POST", "/v1/completions", "/v1/openai/v1/completions", "/v1/completions"),
        ("POST", "/v1/responses", "/v1/openai/v1/responses", "/v1/responses"),
        ("GET", "/v1/responses/a%2Fb", "/v1/openai/v1/responses/a%2Fb", "/v1/responses/a%2Fb"),
        ("GET", "/v1/files/x/content", "/v1/openai/v1/files/x/content", "/v1/files/x/content"),
        ("GET", "/v1/chat/completions", "/v1/openai/v1/chat/completions", "/v1/chat/completions"),
        ("GET", "/openai/v1/models", "/v1/openai/v1/models", "/v1/models"),
        ("POST", "/openai/v1/x//y", "/v1/openai/v1/x//y", "/v1/x//y"),
        ("GET", "/openai/v1", "/openai/v1", "/openai/v1"),
        ("GET", "/v1/openai/v1/models", "/v1/openai/v1/models", "/v1/openai/v1/models"),
        ("GET", "/v1/tools", "/v1/tools", "/v1/tools"),
        ("GET", "/v1/", "/v1/", "/v1/"),
        ("GET", "/v1//models", "/v1//models", "/v1//models"),
        ("GET", "/v1/completions2", "/v1/completions2", "/v1/completions2"),
        ("GET", "/v1alpha/chat", "/v1alpha/chat", "/v1alpha/chat"),
        ("GET", "/docs", "/docs", "/docs"),
        ("GET", "/v1/\xff", "/v1/\xff", "/v1/\xff"),
    ],
)
def test_openai_paths_go_where_the_generation_serves_them(
    method: str, path: str, old: str, new: str
) -> None:
    sent = path.encode("latin-1")
    assert OLD.upstream_path(method.encode(), sent) == old.encode("latin-1")
    assert NEW.upstream_path(method.encode(), sent) == new.encode("latin-1")


@pytest.mark.parametrize(
    ("version", "product"),
    [("0.2.12", "Llama Stack 0.2.12"), ("0.7.3", "Llama Stack 0.7.3"), ("1.5.0", "OGX 1.5.0")],
)
def test_its_name_says_whose_version_it_is(version: str, product: str) -> None:
    assert dialect_of(version).product == product
    assert PLAIN_OPENAI.product == "a plain OpenAI server"


def detecting(*answers: Answer) -> tuple[FakeStack, Upstream]:
    stack = FakeStack()
    stack.on("GET /v1/version", *answers)
    return stack, Upstream(stack)


def detected(upstream: Upstream, after: float = 0) -> ServerDialect:
    detected: ServerDialect = upstream.result(upstream.detector.generation(), after)
    return detected


@pytest.mark.parametrize("version", ["0.2.12", "0.2.24", "0.3.5", "0.6.1"])
def test_a_real_servers_answer_is_understood(version: str) -> None:
    _, upstream = detecting(recorded(version, "version"))
    assert detected(upstream) == dialect_of(version)


def test_one_question_serves_everybody_for_ever() -> None:
    stack, upstream = detecting(nothing)
    waiting = [Deferred.fromCoroutine(upstream.detector.generation()) for _ in range(3)]
    upstream.settle()
    assert len(stack.asked) == 1
    answer({"version": "0.3.5"})(stack.open[0])
    assert [upstream.result(each) for each in waiting] == [OLD] * 3
    assert detected(upstream) == OLD
    assert len(stack.asked) == 1


def test_one_who_leaves_does_not_stop_the_question_for_the_others() -> None:
    stack, upstream = detecting(nothing)
    leaving, staying = (Deferred.fromCoroutine(upstream.detector.generation()) for _ in range(2))
    upstream.settle()
    leaving.cancel()
    with pytest.raises(CancelledError):
        upstream.result(leaving)
    answer({"version": "0.3.5"})(stack.open[0])
    assert upstream.result(staying) == OLD


def test_no_credentials_are_sent_to_find_out() -> None:
    """DESIGN: T1."""
    stack, upstream = detecting(answer({"version": "0.6.1"}))
    detected(upstream)
    assert not stack.asked[0].headers.hasHeader("Authorization")


def test_the_question_is_asked_again_when_the_answer_no_longer_fits() -> None:
    _, upstream = detecting(answer({"version": "0.3.5"}), answer({"version": "0.6.1"}))
    assert detected(upstream) == OLD
    upstream.detector.forget()
    assert detected(upstream) == NEW


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_server_that_does_not_know_the_question_is_a_plain_one(status: int) -> None:
    stack, upstream = detecting(answer({"detail": "Not Found"}, status))
    assert detected(upstream) == PLAIN_OPENAI
    detected(upstream)
    assert len(stack.asked) == 1


TROUBLES = [
    answer(b"<html>Bad Gateway", 502),
    answer({"detail": "starting"}, 503),
    answer({"detail": "too many"}, 429),
    hang_up,
]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_passing_trouble_is_not_remembered(trouble: Answer) -> None:
    """Else one bad moment at the start would cost all tools until the next restart."""
    _, upstream = detecting(trouble, answer({"version": "0.6.1"}))
    assert not detected(upstream).tool_runtime
    assert detected(upstream) == NEW


def test_why_it_is_not_known_is_logged_now_and_then_without_the_servers_words() -> None:
    words = "a secret of the server's"
    _, upstream = detecting(answer({"detail": words}, 503))
    with capturedLogs() as events:
        for _ in range(30):
            assert detected(upstream) == PLAIN_OPENAI
            assert isinstance(upstream.detector.trouble, UpstreamRefused)
            upstream.clock.advance(3)
    lines = [formatEvent(event) for event in events]
    said = [line for line in lines if "does not say what it is" in line]
    assert len(said) == 2 and "HTTP status 503" in said[0] and words not in "".join(lines)


MODELS = answer({"object": "list", "data": [{"id": "m"}]})
PAGE = answer(b"<!doctype html>", 200, {"Content-Type": "text/html"})


@pytest.mark.parametrize(
    ("version", "models", "is_plain"),
    [
        (PAGE, MODELS, True),
        (PAGE, answer({"detail": "who?"}, 401), True),
        (PAGE, PAGE, False),
        (PAGE, hang_up, False),
        (answer({"error": "Unexpected endpoint or method. (GET /v1/version)"}), MODELS, True),
        (answer({"version": None}), MODELS, True),
        (answer(b""), PAGE, False),
    ],
)
def test_what_answers_every_path_is_plain_if_it_has_models(
    version: Answer, models: Answer, is_plain: bool
) -> None:
    stack, upstream = detecting(version)
    stack.on("GET /v1/models", models)
    assert detected(upstream) == PLAIN_OPENAI
    assert (upstream.detector.detected == PLAIN_OPENAI) is is_plain
    assert (upstream.detector.trouble is None) is is_plain


@pytest.mark.parametrize("trouble", TROUBLES)
def test_in_a_passing_trouble_the_server_is_taken_for_what_it_was(trouble: Answer) -> None:
    _, upstream = detecting(answer({"version": "0.3.5"}), trouble)
    detected(upstream)
    upstream.detector.forget()
    assert detected(upstream) == OLD


def test_an_answer_that_is_too_large_for_a_version_is_not_read() -> None:
    _, upstream = detecting(answer({"version": "0.3.5", "more": "x" * 70_000}))
    assert detected(upstream) == PLAIN_OPENAI
    _, upstream = detecting(answer({"version": "0.3.5" + "x" * 1000}))
    assert len(detected(upstream).version) == 100


def test_a_server_that_is_busy_is_given_fifteen_seconds() -> None:
    stack, upstream = detecting(nothing)
    waiting = Deferred.fromCoroutine(upstream.detector.generation())
    upstream.settle()
    upstream.clock.advance(14)
    assert not waiting.called
    with pytest.raises(UpstreamTimeout):
        upstream.result(waiting, after=2)
    stack.on("GET /v1/version", answer({"version": "0.6.1"}))
    assert detected(upstream) == NEW


def test_a_server_that_became_slow_is_taken_for_what_it_was() -> None:
    _, upstream = detecting(answer({"version": "0.3.5"}), nothing)
    detected(upstream)
    upstream.detector.forget()
    assert detected(upstream, after=16) == OLD


def test_a_failure_is_told_to_whoever_waits() -> None:
    _, upstream = detecting(nothing)
    waiting = [Deferred.fromCoroutine(upstream.detector.generation()) for _ in range(2)]
    upstream.settle()
    upstream.clock.advance(20)
    for each in waiting:
        with pytest.raises(ProxyError):
            upstream.result(each)
