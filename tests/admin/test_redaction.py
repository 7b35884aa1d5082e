"""What is not shown of what was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy import jsontext
from llamaproxy.admin.redaction import MASK, redacted, without_pictures
from llamaproxy.jsontext import JsonList

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"

#: None of them may be shown, wherever they stand.
TEXTS = [
    f"Authorization: Bearer {JWT}",
    "authorization: bearer hunter2-hunter2",
    "Authorization: Basic aHVudGVyMjpodW50ZXIy0A==",
    "my key is sk-hunter2hunter2hunter2, keep it",
    "sk-proj-hunter2_hunter2-hunter2",
    "pk_live_hunter2hunter2",
    "ghp_hunter2hunter2hunter2hunter2",
    "github_pat_hunter2hunter2hunter2",
    "glpat-hunter2hunter2",
    "xoxb-hunter2-hunter2",
    "hf_hunter2hunter2hunter2",
    "AIzahunter2hunter2hunter2hunter2hunter2",
    "http://me:hunter2@example.com/x",
    "https://example.com/x?api_key=hunter2&y=1",
    "https://example.com/x?y=1&key=hunter2",
    "password = hunter2",
    'the file says {"password": "hunter2 hunter2", and ends',
    r"{\"client_secret\": \"hunter2 hunter2\"",
    "X-LlamaStack-Provider-Data: {'tavily': 'hunter2'}",
    "Cookie: session=hunter2",
    "Cookie: theme=dark; session=hunter2",
    "curl -H 'Cookie: theme=dark; session=hunter2' https://example.com",
    r"{\"Cookie\": \"theme=dark; session=hunter2\"",
    "Authorization: Basic hunter2hunter2",
    "Authorization: Token hunter2",
    "Proxy-Authorization = ApiKey hunter2",
    "Authorization: hunter2",
    "pwd=hunter2hunter2",
    "AccountKey=hunter2hunter2==;EndpointSuffix=core.windows.net",
    "SharedAccessKey=hunter2hunter2",
    "mysql://root:hunter2@hunter2@db/x",
    "https://example.com/x?X-Goog-Signature=hunter2",
    "tvly-hunter2hunter2",
    "xai-hunter2hunter2",
    "SG.hunter2hunter2hunter2.hunter2",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("text", TEXTS)
def test_credentials_in_text_are_not_shown(text: str) -> None:
    for shown in (
        redacted(text),
        redacted({"content": [{"text": text}]}),
        redacted({"arguments": json.dumps({"q": text})}),
        redacted({"arguments": json.dumps({"q": json.dumps([text])})}),
        redacted({text: 1}),
        redacted(JsonList.of([text])),
    ):
        assert "hunter2" not in json.dumps(shown) and JWT not in json.dumps(shown)
        assert MASK in json.dumps(shown)


@pytest.mark.parametrize(
    "name",
    [
        *("authorization", "Proxy-Authorization", "api_key", "apiKey", "X-API-Key", "token"),
        *("access_token", "refreshToken", "password", "passwords", "db_password", "secret"),
        *("clientSecret", "private-key", "Set-Cookie", "credentials", "x-llamastack-provider-data"),
        *("X-OGX-Provider-Data", "AWS_SECRET_ACCESS_KEY", "pwd", "JWT", "account-key"),
        *("connectionString", "ENCRYPTION_KEY", "ssh_key", "bearer"),
    ],
)
@pytest.mark.parametrize("value", ["hunter2", ["hunter2"], {"user": "hunter2"}])
def test_what_stands_under_the_name_of_a_secret_is_not_shown(name: str, value: Any) -> None:
    assert redacted({"x": [{name: value}]}) == {"x": [{name: MASK}]}
    text = json.dumps({name: value})
    assert "hunter2" not in redacted({"arguments": text})["arguments"]


@pytest.mark.parametrize(
    "value",
    [
        {"max_tokens": 100, "total_tokens": 7, "token_count": 3},
        {"password": None, "secret": True},
        {"content": "A basic question about bearers: what is a token?"},
        {"arguments": '{ "n":  1 }'},
        "Meet me at 12:00 // or later",
        {"key": "C major", "keys": ["a"], "primary_key": "id"},
        "See https://example.com/@someone",
        ["x" * 500, 1.5, None],
    ],
)
def test_everything_else_is_shown_as_it_is(value: Any) -> None:
    assert redacted(value) == value


def test_an_object_with_a_name_twice_hides_neither() -> None:
    assert "hunter2" not in redacted('{"password": "hunter2", "password": null}')


def test_pictures_are_cut() -> None:
    url = "data:image/png;base64," + "iVBORw0K" * 1000
    shown = redacted({"image_url": {"url": url}})["image_url"]["url"]
    assert shown == f"data:image/png;base64,{'iVBORw0K' * 3} [{8000 - 24} characters cut]"
    text = jsontext.dumps([{"image_url": {"url": url}}, "So."])
    cut = without_pictures(text)
    assert json.loads(cut)[1] == "So." and len(cut) < 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_whatever_it_is_it_stays_json_and_what_is_hidden_stays_hidden(value: Any) -> None:
    shown = redacted(value)
    assert redacted(shown) == redacted(redacted(shown))
    jsontext.dumps(shown)


@pytest.mark.parametrize(
    "piece",
    [
        *("eyJ", "eyJ-", "sk-", "a.eyJ", "://", "bearer ", "Basic ", "A" * 511 + " ", 'password="'),
        *("-----BEGIN PRIVATE KEY-----", "token: ", "provider-data: ", "?key=", "eyJaaaaaa."),
        *("hf_", '\\"', "{[", "AKIA", "cookie:", 'authorization: "', "?a-", "&a-a", "://@", "SG."),
    ],
)
def test_what_is_meant_to_be_slow_is_not(piece: str) -> None:
    """It would not end in an hour if any pattern were quadratic."""
    redacted(piece * (2_000_000 // len(piece)))


@pytest.mark.parametrize("depth", [190, 300])
def test_texts_of_json_within_each_other_are_not_too_deep(depth: int) -> None:
    def around(text: str) -> str:
        return "[" * depth + json.dumps(text) + "]" * depth

    deep = around(around(around("sk-hunter2hunter2hunter2")))
    assert "hunter2" not in json.dumps(redacted({"arguments": deep}))
    shown = redacted(jsontext.loads(around(around("Hello"))) if depth < 200 else around("Hello"))
    jsontext.dumps(shown)


@pytest.mark.parametrize("number", [b"1" * 600, b"-" + b"12" * 600 + b"e+1", b"0." + b"3" * 600])
def test_a_number_is_no_picture(number: bytes) -> None:
    text = b'{"n":%b,"p":"%b"}' % (number, b"iVBORw0K" * 1000)
    cut = without_pictures(text)
    assert number in cut and len(cut) < len(number) + 100
    redacted(JsonList(cut))
