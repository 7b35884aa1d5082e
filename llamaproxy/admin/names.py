"""The names of what is measured: OpenTelemetry's, as it writes them, and all series for Prometheus.

OpenTelemetry's are those of its semantic conventions for generative AI, which Envoy AI Gateway,
agentgateway and Kong export too. Prometheus's are made of them by OpenTelemetry's own rule: dots
become underscores, and the unit a suffix; ``{token}`` is none.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

# --- attributes (semantic conventions, "Generative AI metrics")

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
TOKEN_TYPE = "gen_ai.token.type"
ERROR_TYPE = "error.type"

#: Values of them. The convention has no name for Llama Stack.
CHAT = "chat"
PROVIDER = "llama_stack"
INPUT, OUTPUT = "input", "output"

#: What is not named, for want of room: names of peers are without number.
OTHER = "other"

# --- buckets that the conventions ask for

_TOKENS = tuple(float(4**power) for power in range(14))
_SERVER_SECONDS = tuple(0.01 * 2**power for power in range(14))
_FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

# --- and of our own

#: From a fast tool to what nobody waits for.
_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
#: The proxy's own share is milliseconds.
_SHARE_SECONDS = (0.0005, 0.001, 0.0025, *_SECONDS)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ROUNDS = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 25.0, 50.0)
_CALLS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)


#: What several processes have of a series together: the ``sum``, the ``largest``, the ``least``,
#: that of the ``parent`` alone, or the sum over its ``workers`` alone.
Together: TypeAlias = Literal["sum", "largest", "least", "parent", "workers"]


@attrs.frozen
class Series:
    """Everything that has one name: of a histogram *bounds* are the upper ones of its buckets.

    *peers* are those of its labels whose values peers choose.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    together: Together = "sum"
    peers: tuple[str, ...] = ()


def prometheus(name: str, unit: str = "") -> str:
    """OpenTelemetry's *name* as Prometheus spells it, of something in *unit*."""
    return name.replace(".", "_") + (f"_{unit}" if unit else "")


def _gen_ai(name: str, unit: str, meaning: str, bounds: tuple[float, ...], *labels: str) -> Series:
    of_all = (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, RESPONSE_MODEL)
    labels = tuple(map(prometheus, (*of_all, *labels)))
    models = prometheus(REQUEST_MODEL), prometheus(RESPONSE_MODEL)
    return Series(prometheus(name, unit), "histogram", meaning, labels, bounds, peers=models)


TOKEN_USAGE = _gen_ai(
    "gen_ai.client.token.usage", "", "Tokens of completions.", _TOKENS, TOKEN_TYPE
)
REQUEST_DURATION = _gen_ai(
    "gen_ai.server.request.duration",
    "seconds",
    "Seconds until the last of a completion.",
    _SERVER_SECONDS,
    ERROR_TYPE,
)
TIME_TO_FIRST_TOKEN = _gen_ai(
    "gen_ai.server.time_to_first_token",
    "seconds",
    "Seconds until the first of a streamed completion.",
    _FIRST_TOKEN_SECONDS,
)
TIME_PER_OUTPUT_TOKEN = _gen_ai(
    "gen_ai.server.time_per_output_token",
    "seconds",
    "Seconds for each token of a streamed completion after the first.",
    _TOKEN_SECONDS,
)

# --- requests

REQUESTS = Series(
    "llamaproxy_requests_total",
    "counter",
    "Requests that have ended.",
    ("route", "status"),
)
REQUEST_SECONDS = Series(
    "llamaproxy_request_duration_seconds",
    "histogram",
    "Seconds from a whole request to the end of its answer.",
    ("route",),
    _SECONDS,
)
ERRORS = Series(
    "llamaproxy_errors_total",
    "counter",
    "Requests that ended with an error of the proxy's own, or a chat's with the server's.",
    ("kind",),
)
UPSTREAM_ERRORS = Series(
    "llamaproxy_upstream_errors_total",
    "counter",
    "Errors of the server: of completions, of tools that it runs, and of other requests.",
    ("kind",),
)
CLIENTS_LEFT = Series(
    "llamaproxy_clients_left_total",
    "counter",
    "Requests whose client left before its answer's end.",
)
LIMITS_HIT = Series(
    "llamaproxy_limits_hit_total",
    "counter",
    "Times that a limit was reached.",
    ("limit",),
)

# --- chats

CHAT_SECONDS = Series(
    "llamaproxy_chat_part_seconds",
    "histogram",
    "Seconds of a chat's answer by what it waited for: the model, tools, the proxy itself.",
    ("part",),
    _SHARE_SECONDS,
)
FIRST_BYTE_SECONDS = Series(
    "llamaproxy_chat_first_byte_seconds",
    "histogram",
    "Seconds until the first byte of a chat's answer.",
    ("streamed",),
    _SECONDS,
)
ROUNDS = Series(
    "llamaproxy_chat_rounds", "histogram", "Completions asked for by an answer.", (), _ROUNDS
)
CALLS = Series(
    "llamaproxy_chat_tool_calls", "histogram", "Calls of server tools in an answer.", (), _CALLS
)
STREAMS_OPEN = Series("llamaproxy_streams_open", "gauge", "Streamed chats that are being answered.")

# --- tools

TOOL_CALLS = Series(
    "llamaproxy_tool_calls_total",
    "counter",
    "Calls of server tools that have ended.",
    ("group", "tool", "outcome"),
    peers=("group", "tool"),
)
TOOL_SECONDS = Series(
    "llamaproxy_tool_call_duration_seconds",
    "histogram",
    "Seconds that a call ran.",
    ("group", "tool"),
    _SECONDS,
    peers=("group", "tool"),
)
RESULTS_CUT = Series(
    "llamaproxy_tool_results_cut_total", "counter", "Results that were too long for the model."
)
LISTS = Series(
    "llamaproxy_tool_lists_total",
    "counter",
    "Listings of a caller's tools.",
    ("outcome",),
    together="parent",
)
LISTING_FAILURES = Series(
    "llamaproxy_tool_listing_failures_total",
    "counter",
    "Tool lists, or groups of one, that were asked for and could not be had.",
    together="parent",
)
LIST_SECONDS = Series(
    "llamaproxy_tool_list_duration_seconds",
    "histogram",
    "Seconds of a listing.",
    (),
    _SECONDS,
    together="parent",
)
LIST_AGE = Series(
    "llamaproxy_tool_list_age_seconds",
    "gauge",
    "Seconds since any tools have been listed.",
    together="parent",
)
GROUPS_MISSING = Series(
    "llamaproxy_tool_groups_missing",
    "gauge",
    "Tool groups that cannot be listed now.",
    together="parent",
)
GROUP_MISSING = Series(
    "llamaproxy_tool_group_missing",
    "gauge",
    "Whether a group cannot be listed now.",
    ("group",),
    together="parent",
)
GROUP_TOOLS = Series(
    "llamaproxy_tool_group_tools",
    "gauge",
    "Tools that a group has, or last had.",
    ("group",),
    together="parent",
)
GROUP_AGE = Series(
    "llamaproxy_tool_group_age_seconds",
    "gauge",
    "Seconds since a group has been listed.",
    ("group",),
    together="parent",
)
GROUPS_UNKNOWN = Series(
    "llamaproxy_tool_groups_unknown",
    "gauge",
    "Whether the groups themselves cannot be listed now.",
    together="parent",
)
TOOLS_LEFT_OUT = Series(
    "llamaproxy_tools_left_out",
    "gauge",
    "Tools that are not offered for want of room.",
    together="parent",
)

# --- the process

CONNECTIONS = Series("llamaproxy_connections", "gauge", "Client connections.", together="workers")
CONNECTIONS_MAX = Series(
    "llamaproxy_connections_max",
    "gauge",
    "Client connections that there may be.",
    together="workers",
)
RUNNING = Series("llamaproxy_requests_running", "gauge", "Requests served now.")
LISTENER_FAILURES = Series(
    "llamaproxy_listener_failures_total", "counter", "Events that a listener failed over."
)
LOOP_LAG = Series(
    "llamaproxy_event_loop_lag_seconds",
    "histogram",
    "Seconds by which what was due in the event loop came late.",
    (),
    _LAG_SECONDS,
)
CACHE_ENTRIES = Series(
    "llamaproxy_cache_entries", "gauge", "What is remembered, by what it is.", ("cache",)
)
CACHE_ENTRIES_MAX = Series(
    "llamaproxy_cache_entries_max", "gauge", "How many entries there may be.", ("cache",)
)
CACHE_BYTES = Series("llamaproxy_cache_bytes", "gauge", "Its size, where that is kept.", ("cache",))
CACHE_BYTES_MAX = Series(
    "llamaproxy_cache_bytes_max", "gauge", "The size that it may have.", ("cache",)
)
MEMORY_STORE_UP = Series(
    "llamaproxy_memory_store_up",
    "gauge",
    "Whether turns are shared in the store of --memory.",
    together="least",
)
MEMORY_STORE_ERRORS = Series(
    "llamaproxy_memory_store_errors_total",
    "counter",
    "Times that this store failed, by how.",
    ("kind",),
)
MEMORY_STORE_LOOKUPS = Series(
    "llamaproxy_memory_store_lookups_total",
    "counter",
    "Turns that were looked for in it, those that were not in this process's memory.",
    ("outcome",),
)
CHAT_BODIES = Series(
    "llamaproxy_chat_bodies_bytes",
    "gauge",
    "Memory of the bodies of chats under way.",
    together="workers",
)
CHAT_BODIES_MAX = Series(
    "llamaproxy_chat_bodies_bytes_max",
    "gauge",
    "Memory that they may take together.",
    together="workers",
)
BUILD = Series("llamaproxy_build_info", "gauge", "Always 1.", ("version",), together="largest")

# --- workers, where there are several processes

WORKERS = Series("llamaproxy_workers", "gauge", "Workers that serve clients now.")
WORKERS_MAX = Series("llamaproxy_workers_max", "gauge", "Workers that there should be.")
WORKERS_ANSWERED = Series(
    "llamaproxy_workers_answered",
    "gauge",
    "Workers that have said in time what they count; of others it is what they last said.",
)
WORKER_RESTARTS = Series(
    "llamaproxy_worker_restarts_total", "counter", "Workers that were replaced.", ("worker",)
)
WORKER_LAG = Series(
    "llamaproxy_worker_event_loop_lag_seconds",
    "gauge",
    "The latest that anything came in a worker's event loop within the last minute.",
    ("worker",),
)
WORKER_MEMORY = Series(
    "llamaproxy_worker_resident_memory_bytes", "gauge", "Memory of a worker.", ("worker",)
)
WORKER_CPU = Series(
    "llamaproxy_worker_cpu_seconds_total", "counter", "CPU time of a worker.", ("worker",)
)
WORKER_FILES = Series(
    "llamaproxy_worker_open_fds", "gauge", "Files that a worker has open.", ("worker",)
)
WORKER_FILES_MAX = Series(
    "llamaproxy_worker_max_fds", "gauge", "Files that a worker may have open.", ("worker",)
)

#: Those that there are only where there are workers.
OF_WORKERS = (
    *(WORKERS, WORKERS_MAX, WORKERS_ANSWERED, WORKER_RESTARTS),
    *(WORKER_LAG, WORKER_MEMORY, WORKER_CPU, WORKER_FILES, WORKER_FILES_MAX),
)

#: All of them, in the order above.
EVERY = tuple(value for value in list(globals().values()) if isinstance(value, Series))
