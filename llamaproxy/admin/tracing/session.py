"""CollectorSession: how the SDK asks a collector, which may answer anything, or without end."""

from __future__ import annotations

from queue import Empty, Queue
from threading import Thread
from typing import Any

import requests

#: Bytes of an answer that are read: a collector's are some dozen. What is longer is cut off.
MAX_ANSWER = 64 * 1024

#: Seconds that an answer may take, for who does not say.
_SECONDS = 10.0


class CollectorSession(requests.Session):
    """Has the whole answer take no longer than the timeout, and no memory; a redirect is a failure.

    By itself ``requests`` reads whatever comes, as long as something does, and unpacks it; and for
    the SDK spans have arrived that were answered with a redirect.
    """

    def __init__(self) -> None:
        requests.Session.__init__(self)
        self.headers["Accept-Encoding"] = "identity"
        #: Waits for the latest answer, perhaps still.
        self._asking: Thread | None = None

    def send(self, request: requests.PreparedRequest, **arguments: Any) -> requests.Response:
        """:raises requests.RequestException: for a redirect, or if there is no answer in time."""
        if self._asking is not None and self._asking.is_alive():
            raise requests.RequestException("the answer before this has not come to its end")
        seconds = arguments.get("timeout") or _SECONDS
        answers: Queue[requests.Response | Exception] = Queue()

        def ask() -> None:
            try:
                answers.put(self._answer(request, arguments))
            except Exception as error:
                answers.put(error)

        # A socket's limit begins anew with each byte; this thread may take as long as that.
        self._asking = Thread(target=ask, daemon=True)
        self._asking.start()
        try:
            answer = answers.get(timeout=seconds)
        except Empty:
            raise requests.RequestException(f"no whole answer within {seconds:.1f} s") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer(
        self, request: requests.PreparedRequest, arguments: dict[str, Any]
    ) -> requests.Response:
        """The answer, of which nothing is left to be read."""
        bounded = {**arguments, "stream": True, "allow_redirects": False}
        with requests.Session.send(self, request, **bounded) as response:
            if 300 <= response.status_code < 400:
                raise requests.RequestException(f"a redirect ({response.status_code})")
            # So that its connection is kept, if that is all.
            response.raw.read(MAX_ANSWER, decode_content=False)
            return response
