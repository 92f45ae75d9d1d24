"""TensorRT's messages: errors become ours, warnings become notes, the rest is dropped."""

from __future__ import annotations

from typing import Any

MAX_WARNINGS = 20


def make_logger(trt: Any, errors: list[str], warnings: list[str]) -> Any:
    """A logger that keeps errors and the first warnings."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # not super(): pybind11 must see it called on the base

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING and len(warnings) < MAX_WARNINGS:
                warnings.append(message)

    return Logger()
