"""What of a URL may be shown in logs and on pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.upstream.failures import redirect_target
from llamaproxy.upstream.urls import url_for_log

#: What no log may have of any of them.
SECRETS = ("hunter2", "tok3n", "NzE4ZmQ3YjItNGI0", "0f8fad5b-d9cb-469f-a165-70867728950e")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://mcp:9000/mcp", "http://mcp:9000/mcp"),
        ("https://u:hunter2@mcp.example/mcp?key=tok3n#tok3n", "https://mcp.example/mcp"),
        ("//u:hunter2@mcp.example/mcp?key=tok3n", "//mcp.example/mcp"),
        ("u:hunter2@mcp.example/mcp", "mcp.example/mcp"),
        ("u:hunter2@mcp.example//mcp", "mcp.example//mcp"),
        ("hunter2@mcp.example", "mcp.example"),
        ("https://mcp.example?key=http://u:hunter2@b/", "https://mcp.example"),
        ("https://hooks.example/s/NzE4ZmQ3YjItNGI0/mcp", "https://hooks.example/s/***/mcp"),
        (
            "https://mcp.example/server/0f8fad5b-d9cb-469f-a165-70867728950e/sse",
            "https://mcp.example/server/***/sse",
        ),
        ("https://mcp.example/sk-NzE4ZmQ3YjItNGI0/mcp/", "https://mcp.example/***/mcp/"),
        ("https://mcp.example/@user/a-server-with-a-long-name/mcp", None),
        ("https://mcp.example/a//b/v1beta/2025-11-25/streamable-http", None),
        ("http://localhost:8321/v1/openai/v1/chat/completions", None),
        ("/login?next=tok3n", "/login"),
        ("http://[::1]:9000/mcp", None),
        ("", ""),
    ],
)
def test_what_may_be_secret_is_not_shown(url: str, shown: str | None) -> None:
    assert url_for_log(url) == (url if shown is None else shown)
    target = redirect_target([url.encode()])
    assert not any(secret in url_for_log(url) + target for secret in SECRETS)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (b"https://mcp.example:9/login/Bearer HDRSECRET", "https://mcp.example:9/***"),
        (b"https://u:HDRSECRET@mcp.example", "https://mcp.example"),
        (b"HTTP://[::1]:9000/?HDRSECRET", "HTTP://[::1]:9000/"),
        (b"/Bearer HDRSECRET", "***"),
        (b"//HDRSECRET/x", "***"),
        (b"https://Bearer HDRSECRET", "***"),
        (b"\x1b[2JHDRSECRET", "***"),
        (b"https://" + b"a" * 300 + b"/", "***"),
    ],
)
def test_of_a_redirect_only_the_server_is_shown(location: bytes, shown: str) -> None:
    """DESIGN: section 9. A server may put what it was sent into the path."""
    assert redirect_target([location, b"https://second.example"]) == shown


def test_a_redirect_may_lead_nowhere() -> None:
    assert redirect_target([]) == redirect_target([b""]) == "nowhere"


@given(st.text(alphabet="ab:/@?#.-é", max_size=40), st.sampled_from(["", "https://", "//"]))
def test_nothing_before_an_at_sign_of_an_authority_is_shown(text: str, scheme: str) -> None:
    shown = url_for_log(f"{scheme}u:SECRET@{text}")
    assert "SECRET" not in shown
    assert url_for_log(shown) == shown or "@" in text or "//" in text
