"""Google's errors."""

from typing import Any


class CloudError(Exception):
    """An answer that is not 2xx: HTTP status, Google's reason word, a sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"googleapi: Error {status}: {message}, {reason}")
        self.status, self.reason, self.message = status, reason, message

    def to_json(self) -> dict[str, Any]:
        """Return the body of the answer, in the form of Google's REST APIs."""
        errors = [{"message": self.message, "reason": self.reason, "domain": "global"}]
        return {"error": {"code": self.status, "message": self.message, "status": self.reason, "errors": errors}}
