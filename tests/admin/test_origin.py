"""What a page of another origin cannot have a browser do on the admin port."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llamaproxy.admin.origin import check_same_origin
from llamaproxy.errors import Forbidden, UnsupportedMediaType
from tests.support import head_with

JSON = {"content-type": ["application/json"]}
HOST = {"host": ["localhost:8323"]}


def checked(fields: dict[str, list[str]]) -> None:
    request: Any = SimpleNamespace(
        head=head_with({n.encode(): [v.encode() for v in vs] for n, vs in fields.items()})
    )
    check_same_origin(request)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"origin": ["http://localhost:8323"], "sec-fetch-site": ["same-origin"]},
        {"origin": ["http://LOCALHOST:8323"]},
        {"origin": ["https://admin.example"], "host": ["admin.example"]},
        {"origin": ["https://admin.example"], "host": ["admin.example:443"]},
        {"origin": ["http://[::1]:8323"], "host": ["[::1]:8323"]},
        {"sec-fetch-site": ["none"]},
        {"content-type": ["Application/JSON; charset=utf-8"]},
    ],
)
def test_programs_and_its_own_page_may_change_something(fields: dict[str, list[str]]) -> None:
    checked({**JSON, **HOST, **fields})


@pytest.mark.parametrize(
    "types",
    [
        [],
        [""],
        ["text/plain"],
        ["text/plain;application/json"],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=application/json"],
        ["application/json-patch"],
        ["application/json", "text/plain"],
    ],
)
def test_a_form_cannot(types: list[str]) -> None:
    with pytest.raises(UnsupportedMediaType):
        checked({**HOST, "content-type": types})


@pytest.mark.parametrize(
    "fields",
    [
        {"origin": ["http://evil.example"]},
        {"origin": ["null"]},
        {"origin": [""]},
        {"origin": ["http://"]},
        {"origin": ["file://localhost:8323"]},
        {"origin": ["http://localhost"]},
        {"origin": ["http://localhost:8322"]},
        {"origin": ["http://localhost:83230"]},
        {"origin": ["http://localhost:8323/"]},
        {"origin": ["http://localhost:8323", "http://evil.example"]},
        {"origin": ["http://x"], "host": []},
        {"origin": ["http://x"], "host": ["x", "y"]},
        {"sec-fetch-site": ["cross-site"]},
        {"sec-fetch-site": ["same-site"]},
        {"sec-fetch-site": ["same-origin", "cross-site"]},
        {"sec-fetch-site": ["whatever comes"]},
    ],
)
def test_a_page_of_another_origin_cannot(fields: dict[str, list[str]]) -> None:
    with pytest.raises(Forbidden):
        checked({**JSON, **HOST, **fields})
