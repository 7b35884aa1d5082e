"""What the stand-in refuses, in the words and shapes of Llama Stack 0.6.1 (recorded)."""

from __future__ import annotations

from typing import Any

from twisted.web.iweb import IRequest

from llamaproxy import jsontext
from llamaproxy.demo.model import MODEL
from llamaproxy.demo.tools import GROUP, PROVIDER
from llamaproxy.jsontext import Json

#: What 0.6.1 (pydantic) says of a field of the wrong type.
_WRONG_TYPE: dict[type, Json] = {
    str: {"msg": "Input should be a valid string", "type": "string_type"},
    dict: {"msg": "Input should be a valid dictionary", "type": "dict_type"},
    list: {"msg": "Input should be a valid list", "type": "list_type"},
}


class Refused(Exception):
    """The request is answered with an error status and a body in 0.6.1's shape."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


def read_json(request: IRequest) -> Any:
    """The JSON body; None where the request does not say that it is JSON."""
    kinds = request.requestHeaders.getRawHeaders("Content-Type") or [""]
    if kinds[0].partition(";")[0].strip().lower() != "application/json":
        return None
    try:
        return jsontext.loads(request.content.read())
    except ValueError as error:
        place = getattr(error, "pos", 0)
        invalid = {"loc": ["body", place], "msg": "JSON decode error", "type": "json_invalid"}
        raise _invalid([invalid]) from None


def check_model(model_id: str) -> None:
    if model_id != MODEL:
        raise _refused(
            404,
            f"Model '{model_id}' not found. Use 'client.models.list()' to list available Models.",
        )


def check_group(group: str) -> None:
    if group != GROUP:
        hint = "Use 'client.toolgroups.list()' to list available Tool Groups."
        raise Refused(404, {"detail": f"Tool Group '{group}' not found. {hint}"})


def tool_unknown(name: str) -> Refused:
    return Refused(400, {"detail": f"Tool '{name}' not found"})


def tool_not_served(name: str) -> Refused:
    hint = "Make sure there is an ToolGroups provider serving this tool_group."
    return Refused(
        400, {"detail": f"Tool_group `{name}` not served by provider: `{PROVIDER}`. {hint}"}
    )


def check_chat(body: Any) -> None:
    if not isinstance(body, dict):
        wanted = "Input should be a valid dictionary or object to extract fields from"
        raise _invalid([{"loc": ["body"], "msg": wanted, "type": "model_attributes_type"}])
    check_fields(body, {"model": str, "messages": list})
    if not body["messages"]:
        short = "List should have at least 1 item after validation, not 0"
        raise _invalid([{"loc": ["body", "messages"], "msg": short, "type": "too_short"}])
    check_model(body["model"])
    if body.get("tool_choice") is not None and body.get("tools") is None:
        raise _refused(400, "'tool_choice' is only allowed when 'tools' is also provided")


def check_fields(body: Json, types: dict[str, type]) -> None:
    errors: list[Json] = []
    for name, wanted in types.items():
        if name not in body:
            errors.append({"loc": ["body", name], "msg": "Field required", "type": "missing"})
        elif not isinstance(body[name], wanted):
            errors.append({"loc": ["body", name], **_WRONG_TYPE[wanted]})
    if errors:
        raise _invalid(errors)


def _invalid(errors: list[Json]) -> Refused:
    return _refused(400, str({"errors": errors}))


def _refused(status: int, message: str) -> Refused:
    return Refused(status, {"error": {"message": message}})
