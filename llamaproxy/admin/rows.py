"""Rows: what the page is shown of an answer, as JSON made of its record. Pure."""

from __future__ import annotations

from llamaproxy.jsontext import Json
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord

#: Of the rounds and the calls of one answer, those that are shown: the last of them.
MAX_ROUNDS, MAX_CALLS = 50, 100

#: The same where one answer alone is looked at.
MAX_ROUNDS_IN_DETAIL, MAX_CALLS_IN_DETAIL = 1000, 2000

#: Characters of a path that are shown.
_MAX_PATH = 500

_NO_CHAT = ChatRecord()


def row(
    key: int,
    at: float,
    record: RequestRecord,
    now: float,
    rounds: int = MAX_ROUNDS,
    calls: int = MAX_CALLS,
) -> Json:
    """What is known of the request of *record*, at *now* on the clock.

    :param key: its number; *at*: when it began, in Unix seconds: all other times are seconds
        since then, None while they are not known.

    :param rounds: how many of its rounds are shown; *calls*: how many of its calls.
    """
    chat = record.chat or _NO_CHAT
    began = record.began
    model, tools, proxy = record.shares(now)
    return {
        "key": key,
        "id": record.id,
        "at": round(at, 3),
        "client": record.client,
        "who": record.who,
        "method": record.method,
        "path": record.path[:_MAX_PATH],
        "model": chat.model,
        "streamed": chat.streamed,
        "conversation": chat.conversation,
        "trace_id": record.trace_id,
        "status": record.status,
        "kind": record.kind,
        "error": record.error,
        "limit": chat.limit,
        "first_byte": _since(began, record.first_byte),
        "total": _since(began, record.ended),
        "sent": record.sent,
        "offered": len(chat.offered),
        "not_injected": chat.not_injected,
        "listing": round(chat.listed_for(now if record.ended is None else record.ended), 4),
        "shares": {
            "model": round(model, 4),
            "tools": round(tools, 4),
            "proxy": round(proxy, 4),
        },
        "rounds": [_round(each, began) for each in chat.rounds[-rounds:]],
        "calls": [_call(each, began) for each in chat.calls[-calls:]],
    }


def _round(record: RoundRecord, began: float) -> Json:
    return {
        "number": record.number,
        "began": _since(began, record.began),
        "first": _since(began, record.first),
        "ended": _since(began, record.ended),
        "kind": record.kind,
        "model": record.model,
        "finish_reason": record.finish_reason,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
    }


def _call(record: CallRecord, began: float) -> Json:
    return {
        "number": record.number,
        "round": record.round,
        "tool": record.tool,
        "group": record.group,
        "endpoint": record.endpoint,
        "asked": _since(began, record.asked),
        "began": _since(began, record.began),
        "ended": _since(began, record.ended),
        "outcome": record.outcome,
        "reason": record.reason.lstrip(":, "),
        "cut": record.cut,
    }


def _since(began: float, time: float | None) -> float | None:
    return None if time is None else round(time - began, 4)
