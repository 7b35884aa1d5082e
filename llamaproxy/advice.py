"""What may be wrong with the server and its tools, in words, and what to do about it. Pure.

``--check``, the admin port's ``/status`` and docs/troubleshooting.md say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from llamaproxy.errors import (
    GroupMissing,
    McpTimeout,
    McpUnavailable,
    ProxyError,
    UpstreamBroke,
    UpstreamNotJson,
    UpstreamRedirected,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnavailable,
    is_of_one_caller,
)
from llamaproxy.jsontext import Json

#: Characters of a value that is named in the words, most of which are peers'.
_MAX_VALUE = 500


@attrs.frozen
class Advice:
    """*what* is wrong, with what varies in braces, and what to *do*."""

    what: str
    do: str


#: By a name for programs.
ADVICE: Mapping[str, Advice] = MappingProxyType(
    {
        "unreachable": Advice(
            "the server at {url} cannot be reached: {reason}",
            "start it, or say with `--llamastack-url` where it is; in a container, `localhost` is "
            "the container itself",
        ),
        "certificate": Advice(
            "the server at {url} cannot be reached securely: {reason}",
            "name the authority of its certificate with `--upstream-ca`, if that is what is not "
            "trusted; one that has expired must be renewed, and `--llamastack-url` must name the "
            "host that it is for",
        ),
        "silent": Advice(
            "the server at {url} does not answer: {reason}",
            "it is starting, or stalls, or something in between swallows what is sent: ask it with "
            "curl from where llamaproxy runs",
        ),
        "no_http": Advice(
            "what listens at {url} does not answer as an HTTP server does: {reason}",
            "check the port, and whether it is `http` or `https`",
        ),
        "broke_off": Advice(
            "the server at {url} breaks off its answers: {reason}",
            "look into its log, or that of what stands in front of it",
        ),
        "server_error": Advice(
            "the server at {url} answers with HTTP status {status}",
            "look into its log, or that of the proxy in front of it",
        ),
        "redirect": Advice(
            "the server at {url} redirects to {target}",
            "redirects are not followed (`curl -i URL/v1/models` shows all of it): give "
            "`--llamastack-url` what stands before `/v1` there; if that is a login, a way to the "
            "server without one",
        ),
        "web_page": Advice(
            "the server at {url} answers with a web page and not with JSON",
            "that is another program's port, such as Open WebUI's, or a login in front of the "
            "server: `--llamastack-url` must lead to the server itself",
        ),
        "wrong_path": Advice(
            "below {url} there is neither Llama Stack's API nor OpenAI's",
            "check the port and the path of `--llamastack-url`: it is what stands before `/v1`",
        ),
        "credentials": Advice(
            "the server wants credentials, or others: HTTP status {status} for {path}",
            "clients' `Authorization` is passed on to it; with `--api-keys-file` it gets that of "
            "`LLAMASTACK_API_KEY`. Without either this check has none",
        ),
        "unused_key": Advice(
            "`LLAMASTACK_API_KEY` is set and not used",
            "it counts with `--api-keys-file` alone, or everybody would be lent the server's key",
        ),
        "no_chat": Advice(
            "the server has no chat completions at {path}",
            "its inference API is switched off, or this is another kind of server",
        ),
        "no_models": Advice(
            "the server has no models",
            "configure a model provider on the server; `curl` its `/v1/models` to see them",
        ),
        "models_failed": Advice(
            "the server's models cannot be listed: {reason}",
            "look into the server's log",
        ),
        "plain_server": Advice(
            "the server is no Llama Stack, and so has no tools of its own",
            "name MCP servers with `--mcp-server NAME=URL`",
        ),
        "no_groups": Advice(
            "the server has no tool groups and no connectors (for whoever comes without "
            "credentials)",
            "register a tool group (up to 0.6) or a connector (since 0.7, OGX) on the server, or "
            "name MCP servers with `--mcp-server NAME=URL`",
        ),
        "groups_failed": Advice(
            "the server does not list its tools: {reason}",
            "look into the server's log; MCP servers can be named with `--mcp-server NAME=URL`",
        ),
        "group_unreachable": Advice(
            "the MCP server of {group} cannot be reached: {reason}",
            "start it; its URL must lead to it from where llamaproxy runs, and `localhost` in a "
            "container is the container itself",
        ),
        "group_refused": Advice(
            "the MCP server of {group} refuses the token, or wants one: {reason}",
            "give it one with `--mcp-header` if it is of `--mcp-server`; otherwise each client "
            "sends its own in `X-LlamaStack-Provider-Data`",
        ),
        "group_slow": Advice(
            "the MCP server of {group} is too slow: {reason}",
            "it is asked again when a chat needs it; look into its log",
        ),
        "group_failed": Advice(
            "the tools of {group} cannot be listed: {reason}",
            "check its URL, the path too; look into the log of its MCP server, and into Llama "
            "Stack's",
        ),
        "group_program": Advice(
            "the program that is the MCP server of {group} does not serve: {reason}",
            "run its command, as `--mcp-config` has it, by hand and as the user that llamaproxy "
            "runs as; the variables that it needs stand in its `env`",
        ),
        "missing_group": Advice(
            "of the group {group} at {url} the server lists no tools, and does not say why",
            "that MCP server must be reachable from where the server runs; if it wants a token, "
            "each client sends its own in `X-LlamaStack-Provider-Data`",
        ),
        "empty_group": Advice(
            "{group} has no tools that can be offered",
            "look at what its MCP server lists, for the same credentials",
        ),
        "left_out": Advice(
            "{count} tools are not offered, there is no room for them: {names}",
            "raise `--max-tools` or `--max-tool-list`, or have fewer groups",
        ),
        "unfit_tool": Advice(
            "a tool of {group} is not offered: {reason}",
            "its MCP server must give it another name or schema",
        ),
        "hidden_tools": Advice(
            "{count} names of tools belong to several groups, of which one is used: {names}",
            "rename them: up to 0.6 the server runs tools by their names alone",
        ),
        "renamed_tools": Advice(
            "{count} tools have names that others have too: {names}",
            "nothing: they are offered under longer names, which begin with their groups",
        ),
        "undecided": Advice(
            "this could not be found out within {seconds} s: {question}",
            "try again; look into the log of the server, which may be stalled",
        ),
    }
)


@attrs.frozen
class Problem:
    """One of :data:`ADVICE` by *name*, with what varies."""

    name: str
    values: Mapping[str, str] = attrs.Factory(dict)

    @property
    def what(self) -> str:
        """What is wrong, in words."""
        return _plain(ADVICE[self.name].what).format_map(self.values)

    @property
    def do(self) -> str:
        """What to do about it."""
        return _plain(ADVICE[self.name].do)

    def as_json(self) -> Json:
        """For programs."""
        return {"problem": self.name, "what": self.what, "do": self.do}


def _plain(markdown: str) -> str:
    return markdown.replace("`", "")


def problem(name: str, **values: object) -> Problem:
    """The problem of that *name*; of its *values* no more is kept than anybody reads."""
    return Problem(name, {key: str(value)[:_MAX_VALUE] for key, value in values.items()})


def server_problem(url: str, error: ProxyError) -> Problem:
    """Why a question to the server at *url* had no answer."""
    if isinstance(error, UpstreamRefused):
        return problem("server_error", url=url, status=error.status)
    if isinstance(error, UpstreamRedirected):
        return problem("redirect", url=url, target=error.target)
    if isinstance(error, UpstreamNotJson):
        return problem("web_page" if error.is_page else "wrong_path", url=url)
    return server_problem_of(url, error.kind, error.detail)


def server_problem_of(url: str, kind: str, reason: str, is_known: bool = False) -> Problem:
    """The same by the *kind* of the error; *is_known*: whether it has said before what it is."""
    name = {
        UpstreamTls.kind: "certificate",
        UpstreamUnavailable.kind: "unreachable",
        UpstreamBroke.kind: "broke_off" if is_known else "no_http",
        UpstreamTimeout.kind: "silent",
    }.get(kind, "unreachable")
    return problem(name, url=url, reason=reason)


def group_problem(group: str, error: ProxyError) -> Problem:
    """Why the tools of *group* are not known; the empty name stands for all of them."""
    if not group and is_of_one_caller(error):
        path = error.where.partition("://")[2].partition("/")[2]
        return problem("credentials", status=error.status, path=f"/{path}")
    if not group:
        return problem("groups_failed", reason=error.logged)
    if isinstance(error, GroupMissing):
        return problem("missing_group", group=group, url=error.where)
    status = getattr(error, "http_status", error.status)
    by_kind = {
        McpUnavailable.kind: "group_unreachable",
        McpTimeout.kind: "group_slow",
        UpstreamTimeout.kind: "group_slow",
    }
    name = "group_refused" if status in (401, 403) else by_kind.get(error.kind, "group_failed")
    if error.where.startswith("stdio:") and name != "group_slow":
        name = "group_program"  # it has no URL
    return problem(name, group=group, reason=error.logged)
