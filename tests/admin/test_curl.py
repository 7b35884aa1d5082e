"""The command that repeats a request: whatever is in it, a shell reads it as it is."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.admin.curl import TOO_LARGE, curl
from llamaproxy.records import ChatRecord, RequestRecord


def record(path: str = "/v1/chat/completions", method: str = "POST") -> RequestRecord:
    request = RequestRecord("id", "::1", method, path, 0.0)
    request.chat = ChatRecord(request, model="m", streamed=True)
    return request


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_a_shell_reads_it_as_it_is(text: str, more: dict[str, str]) -> None:
    body = {**more, "messages": [{"role": "user", "content": text}]}
    words = shlex.split(curl(record(), "http://localhost:8322", body)["curl"])
    assert words[0] == "curl" and json.loads(words[-1]) == body
    assert not set("\0\n\r\x1b\x7f") & set(words[-1])


@pytest.mark.parametrize("control", ["\x9b31m", "\u202e", "\u2066", "\u200b", "\u2028", "\x85"])
def test_what_a_terminal_shows_is_what_a_shell_is_given(control: str) -> None:
    words = shlex.split(curl(record(), "http://localhost:8322", {"model": f"a{control}b"})["curl"])
    assert control[0] not in words[-1]
    assert json.loads(words[-1]) == {"model": f"a{control}b"}


@pytest.mark.parametrize(
    "path", ["/v1/x;reboot", "/$(reboot)", "/`reboot`", "/'", "/[a-z]", "-o/x"]
)
def test_a_path_is_part_of_the_url_and_nothing_else(path: str) -> None:
    request = record(path, "GET")
    request.chat = None
    words = shlex.split(curl(request, "http://localhost:8322", None)["curl"])
    assert words[:2] == ["curl", "-g"] and len(words) == 3
    assert words[2].startswith("http://localhost:8322/")


def test_other_methods_are_named() -> None:
    request = record("/v1/files", "DELETE")
    request.chat = None
    words = shlex.split(curl(request, "http://localhost:8322", None)["curl"])
    assert words == ["curl", "-g", "-X", "DELETE", "http://localhost:8322/v1/files"]


def test_a_unix_socket_is_asked_by_its_path() -> None:
    words = shlex.split(curl(record(), "http+unix:///run/a b", None)["curl"])
    assert words[2:5] == ["--unix-socket", "/run/a b", "http://localhost/v1/chat/completions"]


def test_a_body_that_no_command_can_hold_has_a_placeholder() -> None:
    request = record()
    made = curl(request, "http://localhost:8322", {"messages": ["x" * 200_000]})
    text, lacking = made["curl"], made["curl_lacks"]
    body = json.loads(shlex.split(text)[-1])
    assert body["messages"][0]["content"] == lacking == TOO_LARGE
    assert len(text) < 1000 and (body["model"], body["stream"]) == ("m", True)


def test_the_tools_that_were_wanted_are_wanted_again() -> None:
    request = record()
    assert request.chat is not None
    request.chat.note_patterns("mcp::*, it's")
    words = shlex.split(curl(request, "http://localhost:8322", {})["curl"])
    assert words[words.index("X-Llamaproxy-Tools: mcp::*, it's") - 1] == "-H"
    request.chat.note_patterns("a\tb,wetter_f\xc3\xbcr,\x9b\xff")
    words = shlex.split(curl(request, "http://localhost:8322", {})["curl"])
    assert "X-Llamaproxy-Tools: a b,wetter_f\xc3\xbcr,\xff" in words, "it is not UTF-8"
    request.chat.note_patterns("wetter_f\xc3\xbcr")
    words = shlex.split(curl(request, "http://localhost:8322", {})["curl"])
    assert "X-Llamaproxy-Tools: wetter_f\xfcr" in words
