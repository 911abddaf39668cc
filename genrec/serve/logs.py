"""Log lines that machines read, each with the request it belongs to.

Owns their form and the current request's id. Knows no route.
"""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar
from typing import TextIO

request_id: ContextVar[str] = ContextVar("genrec_request_id", default="")
"""The id of the request that the current task works on; "" outside any."""

FIELDS = "fields"
"""A record's attribute with what a line says besides its message: `extra={FIELDS: {...}}`."""

_SERVER_LOGGERS = ("genrec", "uvicorn", "uvicorn.error")


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Line ends of data stay inside strings, so no one forges a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logs(stream: TextIO) -> None:
    """Send what genrec and uvicorn log to a stream, as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for name in _SERVER_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    # Our own line a request says more than uvicorn's.
    logging.getLogger("uvicorn.access").handlers[:] = []
    logging.getLogger("uvicorn.access").propagate = False
