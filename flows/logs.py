"""Log lines as JSON, one object a line, for programs that collect logs."""

import json
import logging
import os
from datetime import UTC, datetime

from prefect.logging.handlers import PrefectConsoleHandler

SETTING = "MOBILENET_PIPELINE_LOG"
"""The variable that chooses the form of log lines: `text` or `json`."""


class JsonLines(logging.Formatter):
    """Format a record as a JSON object with time, level, recipe, run, stage and message."""

    def __init__(self, recipe: str) -> None:
        super().__init__()
        self.recipe = recipe

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A field that the record lacks, such as the stage of a line about the run, is left out."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "recipe": self.recipe,
            "run": getattr(record, "flow_run_name", None),
            "run_id": getattr(record, "flow_run_id", None),
            "stage": getattr(record, "task_run_name", None),
            "message": record.getMessage(),
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None}, ensure_ascii=False)


def as_json() -> bool:
    """Return whether log lines are wanted as JSON. Raises ValueError for an unknown form."""
    form = os.environ.get(SETTING, "text")
    if form not in ("text", "json"):
        raise ValueError(f"{SETTING}={form!r} is no form of log lines; set it to text or json")
    return form == "json"


def set_up(recipe: str) -> None:
    """Let this process write log lines in the chosen form to the terminal, those of Prefect and of libraries."""
    for handler in logging.getLogger().handlers if as_json() else []:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setFormatter(JsonLines(recipe))
