"""Log lines as JSON, one object a line, for programs that collect logs."""

import json
import logging
from datetime import UTC, datetime

from prefect.logging.handlers import PrefectConsoleHandler

from mobilenet_pipeline.system import environment


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


def set_up(recipe: str) -> None:
    """Let this process write log lines in the chosen form to the terminal, those of Prefect and of libraries."""
    for handler in logging.getLogger().handlers if environment.logs_as_json() else []:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setFormatter(JsonLines(recipe))
