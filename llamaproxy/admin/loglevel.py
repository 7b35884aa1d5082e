"""LogLevels: the level of the log, read and changed on the admin port."""

from __future__ import annotations

from typing import ClassVar

import attrs
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.admin.origin import check_same_origin
from llamaproxy.admin.serving import Serving
from llamaproxy.config.logformat import LEVELS, threshold
from llamaproxy.errors import BadRequest, ProxyError
from llamaproxy.jsontext import Json
from llamaproxy.request import ProxyRequest


class NoLevel(ProxyError):
    """The log is one of twistd's own (--logger, --syslog), which has no level to be changed."""

    status = 409
    kind = "no_log_level"


@attrs.frozen(eq=False, repr=False)
class LogLevels:
    """Answers for ``/log-level``; *serving* is to have the same level."""

    _serving: Serving
    _log: ClassVar[Logger] = Logger()

    def as_json(self) -> Json:
        """The level in force, and those that there are."""
        return {"level": threshold.level if threshold.in_use else None, "levels": list(LEVELS)}

    def set(self, request: ProxyRequest) -> Json:
        """Use the level in the body of *request* from now on.

        :raises ProxyError: if that cannot be done, or not be asked for.
        """
        check_same_origin(request)
        try:
            body = jsontext.loads(request.content.read())
        except ValueError:
            body = None
        level = body.get("level") if isinstance(body, dict) else None
        if level not in LEVELS:
            raise BadRequest(f'The body must be {{"level": …}}, with one of {", ".join(LEVELS)}.')
        if not threshold.in_use:
            raise NoLevel()
        if level != threshold.level:
            # Said as long as, or as soon as, it can be seen.
            threshold.level = min(level, threshold.level, key=LEVELS.index)
            self._log.warn("the log level is {name} from now on", name=level)
            threshold.level = level
        self._serving.set_log_level(level)
        return self.as_json()
