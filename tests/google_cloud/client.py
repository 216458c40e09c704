"""Calls to the daemon."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit


class Refused(Exception):
    """The daemon's answer is an error: the text is the one that the real provider would show."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """A client that threads may share: each call has its own connection. No proxy is ever asked."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc

    def request(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request; return (status, JSON). Raise Refused where nobody answers."""
        connection = http.client.HTTPConnection(self._host, timeout=900)
        try:
            connection.request(verb, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if content else None
        except OSError as error:
            raise Refused(f"the stand-in cloud at {self._host} does not answer: {error}") from None
        finally:
            connection.close()

    def call(self, path: str, body: Any) -> Any:
        """Return the answer to a POST. Raise Refused."""
        status, answer = self.request("POST", path, body)
        if status >= 300:
            error = answer["error"]
            raise Refused(f"googleapi: Error {status}: {error['message']}, {error['status']}", status)
        return answer
