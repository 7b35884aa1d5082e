"""Where a store is, by its URL."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.python.usage import UsageError

from llamaproxy.config import options as options_module
from llamaproxy.config.options import Options
from llamaproxy.config.storeaddress import store_address


@pytest.mark.parametrize(
    ("text", "shown", "fields"),
    [
        ("redis://host", "redis://host", {"hosts": (("host", 6379),)}),
        (" redis://host/ ", "redis://host/", {"hosts": (("host", 6379),)}),
        ("valkey://host:7/3", "valkey://host:7/3", {"hosts": (("host", 7),), "database": 3}),
        ("redis://[::1]:7", "redis://[::1]:7", {"hosts": (("::1", 7),)}),
        ("redis://store_1", "redis://store_1", {"hosts": (("store_1", 6379),)}),
        (
            "rediss://u%40x:p%2Fw%3A@host",
            "rediss://u%40x@host",
            {"hosts": (("host", 6379),), "tls": True, "user": "u@x", "password": "p/w:"},
        ),
        ("redis://:word@h", "redis://h", {"hosts": (("h", 6379),), "password": "word"}),
        (
            "redis://u:a@b@h",
            "redis://u@h",
            {"hosts": (("h", 6379),), "user": "u", "password": "a@b"},
        ),
        ("redis+unix:///run/r%20s", "redis+unix:///run/r%20s", {"path": "/run/r s"}),
        (
            "valkey+unix://u:p@/run/s?db=2",
            "valkey+unix://u@/run/s",
            {"path": "/run/s", "database": 2, "user": "u", "password": "p"},
        ),
        (
            "redis+sentinel://:p@a,b:7/my-name",
            "redis+sentinel://a,b:7/my-name",
            {"hosts": (("a", 26379), ("b", 7)), "service": "my-name", "password": "p"},
        ),
        (
            "REDISS+sentinel://[::1]:9/n/4",
            "REDISS+sentinel://[::1]:9/n/4",
            {"hosts": (("::1", 9),), "service": "n", "tls": True, "database": 4},
        ),
    ],
)
def test_a_url_says_where_a_store_is(text: str, shown: str, fields: dict[str, Any]) -> None:
    address = store_address(text)
    assert address.shown == shown
    empty: dict[str, Any] = {"hosts": (), "path": "", "service": "", "tls": False, "database": 0}
    for name, value in (empty | {"user": "", "password": ""} | fields).items():
        assert getattr(address, name) == value, name
    assert "word" not in repr(address)


BAD = [
    "",
    "host:6379",
    "http://secret@host",
    "redis:host",
    "redis://",
    "redis://:secret",
    "redis://secret@host",
    "redis://secret:@host",
    "redis://host:0",
    "redis://host:65536",
    "redis://host:secret",
    "redis://host/secret",
    "redis://host/1/secret",
    "redis://host?password=secret",
    "redis://host/0?db=secret",
    "redis://u:secret@ho st",
    "redis://u:secret\n@host",
    "redis://u:secret@host#1",
    "redis://u:%FFsecret@host",
    "redis://a,secret",
    "redis://[::1",
    "rediss+unix:///secret",
    "redis+unix://host/secret",
    "redis+unix://",
    "redis+unix:///x?secret=1",
    "redis+unix:///x?db",
    "redis+unix:///x?db=secret",
    "redis+sentinel://a,b",
    "redis+sentinel://a,b/",
    "redis+sentinel:///secret",
    "redis+sentinel://a,,b/secret",
    "redis+sentinel://a/n/secret",
    "redis+cluster://secret",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_such_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--memory must be a URL such as redis://") as refused:
        parsed("--memory", text)
    assert "secret" not in str(refused.value)


def parsed(*arguments: str, **environment: str) -> Options:
    options = Options(environment)
    options.parseOptions(arguments)
    return options


def test_without_it_there_is_none() -> None:
    assert parsed()["memory"] is None
    assert parsed(LLAMAPROXY_MEMORY_SECRET="x")["memory"] is None


def test_it_needs_a_secret_of_some_length() -> None:
    for given in ({}, {"LLAMAPROXY_MEMORY_SECRET": "fifteen letters"}):
        with pytest.raises(UsageError, match="needs a secret in LLAMAPROXY_MEMORY_SECRET") as no:
            parsed("--memory", "redis://host", **given)
        assert "fifteen" not in str(no.value)
    secret = "sixteen letters!"
    options = parsed(LLAMAPROXY_MEMORY="redis://host", LLAMAPROXY_MEMORY_SECRET=f" {secret} ")
    assert options["memory-secret"] == secret and options["memory"].hosts == (("host", 6379),)
    assert parsed("--memory", "redis://h", "--memory-secret", secret)["memory-secret"] == secret


def test_it_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'llamaproxy\[redis\]'"):
        parsed("--memory", "redis://host", "--memory-secret", "x" * 16)
    parsed()
