"""The lines of the log: words for people, or JSON for programs."""

import datetime as dt
import json
import logging
from typing import Any

from ganserve.calls import current_call
from ganserve.plain_text import escape
from ganserve.setting_values import LogFormat

# What gRPC logs, with a traceback, of each value that is no UTF-8; any caller can send hundreds.
_ODD_METADATA = "Invalid encoding on %s"
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line; characters beyond ASCII are escaped, so a line stays one.

    Fields: timestamp (RFC 3339 in UTC), level, logger, message, those of the record's `fields`,
    the ids of the call that is being answered, and of an exception its traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Make the line."""
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line: dict[str, object] = {
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        call = current_call.get()
        if call is not None:
            line["request_id"] = call.request_id
            if call.trace is not None:
                line |= {"trace_id": call.trace.trace_id, "span_id": call.trace.span_id}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def is_not_of_bad_metadata(record: logging.LogRecord) -> bool:
    """Whether a line of gRPC is worth writing: not a traceback for each odd byte in metadata."""
    return record.msg != _ODD_METADATA


class TextFormatter(logging.Formatter):
    """A line for people. What a message quotes begins no line and commands no terminal."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's
        """Make the line, less an exception's traceback."""
        record.message = escape(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401 - logging's
        """Make the traceback, indented, so that no line of it looks like one of the log."""
        return "\n".join(f"  {escape(line)}" for line in super().formatException(ei).split("\n"))


def set_up_logging(level: str, log_format: LogFormat) -> None:
    """Send the log to stderr, in this form; other libraries' lines from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("ganserve").setLevel(level.upper())
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_not_of_bad_metadata)
