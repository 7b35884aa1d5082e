"""Status: all that an operator may want to know of the daemon at one moment, as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy import __version__
from llamaproxy.admin.reachability import Reachability
from llamaproxy.admin.serving import Serving
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.advice import Problem, problem, server_problem, server_problem_of
from llamaproxy.config.logformat import threshold
from llamaproxy.errors import ProxyError
from llamaproxy.jsontext import Json


@attrs.frozen(eq=False, repr=False)
class Status:
    """What ``/status`` and ``/ready`` say.

    *url* is the server's; *dialect* returns what is known of its generation, None before it is
    known; *draining* returns whether the daemon is stopping; *trouble* returns why it is not known
    what the server is.
    """

    url: str
    clock: IReactorTime
    tools: ToolStatus
    reachability: Reachability
    draining: Callable[[], bool]
    dialect: Callable[[], Json | None]
    serving: Serving
    trouble: Callable[[], ProxyError | None] = lambda: None
    _began: float = attrs.field(init=False)

    @_began.default
    def _now(self) -> float:
        return self.clock.seconds()

    def readiness(self) -> tuple[bool, Json]:
        """Whether requests should come here, and why not; whoever asks has the server asked.

        Missing tools do not keep anybody from chatting (DESIGN: L22).
        """
        self.reachability.wanted()
        status, reason = "ready", None
        if self.draining():
            status, reason = "draining", "the daemon is stopping"
        elif unready := self.serving.unready():
            status, reason = "not serving", unready
        elif self.reachability.reachable is False:
            status, reason = "upstream unreachable", self._server_problem().what
        upstream = self.reachability.as_json()
        tools = self.tools.summary()
        return status == "ready", {
            "status": status,
            "reason": reason,
            "upstream": {key: upstream[key] for key in ("reachable", "last_error")},
            "tools": {**tools, "problems": [each.what for each in self._tool_problems()]},
        }

    async def as_json(self) -> Json:
        """Everything."""
        figures = await self.serving.figures()
        dialect = self.dialect()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": round(self.clock.seconds() - self._began, 1),
            "draining": self.draining(),
            "log_level": threshold.level,
            "upstream": {
                "url": self.url,
                "server": None if dialect is None else dialect["name"],
                "dialect": dialect,
                **self.reachability.as_json(),
            },
            **self.tools.as_json(self.serving.calls),
            **figures,
            "advice": [each.as_json() for each in self._problems()],
        }

    def _server_problem(self) -> Problem:
        kind, error = self.reachability.kind, self.reachability.error
        return server_problem_of(self.url, kind, error, is_known=self.dialect() is not None)

    def _problems(self) -> list[Problem]:
        trouble, reachability = self.trouble(), self.reachability
        if trouble is not None:
            server, reason = server_problem(self.url, trouble), trouble.logged
        elif reachability.failures:
            server, reason = self._server_problem(), reachability.error
        else:
            return self._tool_problems()
        # That the tools cannot be listed for that is not another thing to mend.
        same = problem("groups_failed", reason=reason)
        return [server, *(each for each in self._tool_problems() if each != same)]

    def _tool_problems(self) -> list[Problem]:
        dialect = self.dialect()
        if dialect is not None and not self.tools.any_group and self.tools.is_known:
            return [problem("no_groups" if dialect["version"] else "plain_server")]
        return self.tools.problems()
