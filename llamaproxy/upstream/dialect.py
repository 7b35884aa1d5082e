"""ServerDialect: the paths and formats of each server generation; Detector: which one it is.

The table is that of docs/upstreams.md: measured on Llama Stack 0.2.12 to 0.7.3 and OGX 0.8.0 to
1.5.0. Nothing outside this module compares versions.
"""

from __future__ import annotations

import math
import re
from typing import ClassVar

import attrs
from twisted.internet.defer import TimeoutError
from twisted.logger import Logger

from llamaproxy.deferreds import SharedCall, within
from llamaproxy.errors import (
    ProxyError,
    UpstreamBroke,
    UpstreamNotJson,
    UpstreamRefused,
    UpstreamTimeout,
)
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.client_context import (
    LLAMA_STACK_PROVIDER_DATA,
    OGX_PROVIDER_DATA,
    ClientContext,
)
from llamaproxy.upstream.failures import not_begun

#: Seconds for ``GET /v1/version``: a busy server has been seen to stall for 11 s.
DETECTION_TIMEOUT = 15.0

#: The most bytes of its answer.
_MAX_VERSION_BYTES = 64 * 1024

#: Characters of a version, which the log repeats.
_MAX_VERSION_LENGTH = 100

#: Seconds after which it is logged again why it is not known what the server is.
_WARN_INTERVAL = 60.0

#: Seconds between two detections because of paths that were not found.
DOUBT_INTERVAL = 10.0

#: Statuses below 500 that are no answer to the question: too slow, too early, too often.
_TRANSIENT = (408, 425, 429)

#: Paths at which a server calls MCP servers for its client.
_CALLS_MCP = re.compile(rb"/v1/(?:openai/v1/)?(?:tools|tool-runtime|toolgroups|responses|agents)\b")

#: First path segments of OpenAI's API that servers up to 0.3 serve under ``/v1/openai/v1``.
_OPENAI_SEGMENTS = frozenset(
    {
        "batches",
        "chat",
        "completions",
        "embeddings",
        "files",
        "moderations",
        "responses",
        "vector_stores",
    }
)


@attrs.frozen
class ServerDialect:
    """What one server generation serves, and where.

    *version* is that of ``GET /v1/version``, empty for a server that is no Llama Stack;
    *openai_prefix* is where its OpenAI dialect lives; *tool_runtime* tells whether tools can be
    invoked over HTTP; *connectors* are the routes, the likeliest first, that may name its MCP
    servers; *provider_data* is its field for credentials of its providers, and *mcp_headers* what
    it makes of those in it (see :meth:`ClientContext.translated`).
    """

    version: str
    openai_prefix: str
    tool_runtime: bool
    connectors: tuple[str, ...] = ()
    provider_data: bytes = LLAMA_STACK_PROVIDER_DATA
    mcp_headers: str = "dropped"

    def context_for(self, caller: ClientContext) -> ClientContext:
        """*caller* in the format of this generation (DESIGN: T4)."""
        return caller.translated(self.provider_data, self.mcp_headers)

    def chat_context_for(self, caller: ClientContext) -> ClientContext:
        """The same for chat completions, for which no server wants ``mcp_headers``."""
        return caller.translated(self.provider_data, "dropped")

    def wants_mcp_headers(self, path: bytes) -> bool:
        """Whether *path*, as this generation serves it, may make it call MCP servers."""
        return bool(self.version) and _CALLS_MCP.match(path) is not None

    @property
    def name(self) -> str:
        """The generation in words, for logs."""
        return f"version {self.version}" if self.version else "a plain OpenAI server"

    @property
    def product(self) -> str:
        """The same for who does not see that it is about the server: ``Llama Stack 0.6.1``."""
        if not self.version:
            return self.name
        is_ogx = self.provider_data == OGX_PROVIDER_DATA
        return f"{'OGX' if is_ogx else 'Llama Stack'} {self.version}"

    def upstream_path(self, method: bytes, path: bytes) -> bytes:
        """The path at which this generation serves a client's *path* (both without a query).

        ``/openai/v1/…`` never existed at the root of any server. ``GET /v1/models`` up to 0.3 is
        a list of another shape, while ``POST /v1/models`` registers a model: only the list moves.
        """
        prefix = self.openai_prefix.encode()
        if path.startswith(b"/openai/v1/"):
            return prefix + path.removeprefix(b"/openai/v1")
        if prefix == b"/v1" or not path.startswith(b"/v1/"):
            return path
        rest = path.removeprefix(b"/v1")
        first = rest.split(b"/")[1].decode("latin-1")
        if first in _OPENAI_SEGMENTS or (rest == b"/models" and method in (b"GET", b"HEAD")):
            return prefix + rest
        return path


def dialect_of(version: str) -> ServerDialect:
    """The generation that a server of *version* (``"0.6.1"``) belongs to.

    A version that cannot be read is taken for the newest.
    """
    match = re.match(r"\s*v?([0-9]{1,6})\.([0-9]{1,6})", version)
    release = (int(match[1]), int(match[2])) if match else (999, 0)
    return ServerDialect(
        version=version,
        openai_prefix="/v1/openai/v1" if release < (0, 4) else "/v1",
        tool_runtime=release < (0, 7),
        connectors=_connectors(release),
        # With 0.8, Llama Stack became OGX.
        provider_data=LLAMA_STACK_PROVIDER_DATA if release < (0, 8) else OGX_PROVIDER_DATA,
        mcp_headers="kept" if release < (0, 4) else "apart" if release < (0, 7) else "dropped",
    )


def _connectors(release: tuple[int, int]) -> tuple[str, ...]:
    if release < (0, 5):
        return ("/v1/toolgroups",)  # which have the URLs of MCP servers too
    if release < (0, 7):
        return ("/v1alpha/connectors",)
    if release < (1, 0):
        return ("/v1beta/connectors", "/v1alpha/admin/connectors")
    return ("/v1alpha/admin/connectors", "/v1beta/connectors")


PLAIN_OPENAI = ServerDialect(version="", openai_prefix="/v1", tool_runtime=False)


@attrs.define(eq=False, repr=False)
class Detector:
    """Detects the upstream's generation once, and again after :meth:`forget`.

    However many wait for it, one request is made.
    """

    _client: LlamaStackClient
    detected: ServerDialect | None = None
    #: Why it is not known what the server is, as long as it never was: it is only taken for a plain
    #: one then. None before the first question to it too.
    trouble: ProxyError | None = None
    #: What was detected last, though it is to be detected again.
    last: ServerDialect | None = None
    #: Why it could not be detected, as the log has it, and when that was written.
    _warned_of: str = ""
    _warned_at: float = 0.0
    _doubted_at: float = -DOUBT_INTERVAL
    _detection: SharedCall[ServerDialect] = attrs.Factory(SharedCall)
    _log: ClassVar[Logger] = Logger()

    async def generation(self, until: float = math.inf) -> ServerDialect:
        """The upstream's generation.

        :param until: clock seconds after which it is not waited for, though it is still detected.

        :raises ProxyError: if the upstream gives no answer at all, or none by then.
        """
        if self.detected is not None:
            return self.detected
        return await self.confirmed(until)

    async def confirmed(self, until: float = math.inf) -> ServerDialect:
        """The same, detected anew, while others go on with what was detected before."""
        detection = self._detection.result(self._detect)
        seconds = max(0.0, until - self._client.clock.seconds())
        if seconds >= DETECTION_TIMEOUT:  # which is its own limit
            return await detection
        try:
            return await within(seconds, self._client.clock, detection)
        except TimeoutError:
            raise not_begun(seconds) from None

    def seconds(self) -> float:
        """The time on the clock."""
        return self._client.clock.seconds()

    async def answers(self) -> int:
        """The status with which the upstream answers just now, whatever it is.

        :raises ProxyError: if it does not answer.
        """
        head, _ = await self._client.look(
            "GET", "/v1/version", ClientContext(), None, DETECTION_TIMEOUT
        )
        return head.status

    def doubt(self) -> None:
        """Detect again when next needed, at most every :data:`DOUBT_INTERVAL` seconds."""
        now = self._client.clock.seconds()
        if now - self._doubted_at >= DOUBT_INTERVAL:
            self._doubted_at = now
            self.detected = None

    def forget(self) -> None:
        """Detect again when next needed: the server went away, or serves other paths now."""
        self.detected = None

    async def _detect(self) -> ServerDialect:
        try:
            dialect = await self._ask()
        except ProxyError as error:
            self.trouble = None if self.last is not None else error.with_traceback(None)
            if not isinstance(error, UpstreamRefused | UpstreamBroke):
                raise
            # Trouble that may pass (a server that starts, a gateway): ask again next time.
            guess = self.last or PLAIN_OPENAI
            self._warn(guess, error.logged)
            return guess
        self.detected, self.trouble, self._warned_of = dialect, None, ""
        if dialect != self.last:
            self._log.info("the upstream is {name}", name=dialect.name)
        self.last = dialect
        return dialect

    def _warn(self, guess: ServerDialect, reason: str) -> None:
        # Every request asks.
        now = self._client.clock.seconds()
        if reason != self._warned_of or now - self._warned_at >= _WARN_INTERVAL:
            self._warned_of, self._warned_at = reason, now
            self._log.warn(
                "the upstream does not say what it is and is taken for {name}: {reason}",
                name=guess.name,
                reason=reason,
            )

    async def _ask(self) -> ServerDialect:
        try:
            answer = await self._client.ask(
                "GET",
                "/v1/version",
                ClientContext(),
                timeout=min(DETECTION_TIMEOUT, self._client.timeout),
                limit=_MAX_VERSION_BYTES,
            )
        except UpstreamRefused as error:
            if error.status >= 500 or error.status in _TRANSIENT:
                raise
            # Llama Stack needs no credentials here, so 401 is somebody else's server.
            return PLAIN_OPENAI
        except UpstreamNotJson:
            # Some servers have a page for every path that they do not know.
            if await self._lists_models():
                return PLAIN_OPENAI
            raise
        except UpstreamTimeout:
            if self.last is None:
                raise
            return self.last
        version = answer.get("version")
        # LM Studio answers every path that it does not know with 200 and an object.
        if not isinstance(version, str) or not version:
            return PLAIN_OPENAI
        return dialect_of(version[:_MAX_VERSION_LENGTH])

    async def _lists_models(self) -> bool:
        try:
            answer = await self._client.ask(
                "GET",
                "/v1/models",
                ClientContext(),
                timeout=min(DETECTION_TIMEOUT, self._client.timeout),
            )
        except UpstreamRefused as error:
            return error.status in (401, 403)
        except ProxyError:
            return False
        return isinstance(answer.get("data"), list)
