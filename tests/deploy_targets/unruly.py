"""Runtimes that behave badly, for test_isolation.py: each is opened in a real process of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionInfo,
    SessionOptions,
    Target,
)


class _Session(Session):
    info = SessionInfo("unruly", "1", "cpu", "cpu", 1, "fp32")

    def __init__(self, target: Chatters) -> None:
        self.target = target

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self.target.answer(batch)


class Chatters(Target):
    """Prints on stdout, through Python and below it."""

    name = "unruly"
    extra = ""

    def availability(self) -> Availability:
        return Availability(True)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        return CompileResult("model")

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        print("opening")
        return _Session(self)

    def answer(self, batch: np.ndarray) -> np.ndarray:
        print("running")
        os.write(1, b"running\n" * 100)
        return np.zeros((len(batch), 10), np.float32)


class TellsProgress(Chatters):
    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        for step in range(3):
            if self.on_progress is not None:
                self.on_progress("Building", step + 1, 3)
        return CompileResult("model")


class TellsItsWaitPolicy(Chatters):
    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        return CompileResult("model", {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY")})


class CrashesAtRun(Chatters):
    def answer(self, batch: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGSEGV)
        return batch


class CrashesAtTwo(Chatters):
    """At two images, not at one."""

    def answer(self, batch: np.ndarray) -> np.ndarray:
        if len(batch) == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().answer(batch)


class LeavesAtRun(Chatters):
    def answer(self, batch: np.ndarray) -> np.ndarray:
        sys.stderr.write("the last words\n")
        sys.stderr.flush()
        os._exit(7)


class HangsAtRun(Chatters):
    def answer(self, batch: np.ndarray) -> np.ndarray:
        time.sleep(1000)
        return batch


class AnswersNan(Chatters):
    def answer(self, batch: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(batch), 10), np.float32)
        logits[1, 3] = np.nan
        return logits


class AnswersTooFew(Chatters):
    def answer(self, batch: np.ndarray) -> np.ndarray:
        return np.zeros((1, 10), np.float32)


class RaisesAtRun(Chatters):
    def answer(self, batch: np.ndarray) -> np.ndarray:
        return batch / (1 // (len(batch) - 2))


class CrashesAtCompile(Chatters):
    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        os.abort()


class HangsAtCompile(Chatters):
    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        time.sleep(1000)
        return CompileResult("model")
