"""The parent's end of a worker process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 600.0


class PeerError(Exception):
    """A peer could not be loaded or failed; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the table: which peer module, under which interpreter, with which options."""

    name: str
    python: Path
    module: str
    options: dict[str, Any]
    plain: str | None = None  # the variant whose text this one must repeat, if it drafts
    note: str = ""


class Client:
    """A running worker; a context manager that ends it."""

    def __init__(self, variant: Variant, log: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """Start the worker and wait until its model is loaded.

        Args:
            variant: What to start.
            log: File for its standard error.
            timeout_s: Longest wait for any one answer.

        Raises:
            PeerError: It cannot be started or loaded.
        """
        self.variant = variant
        self.timeout_s = timeout_s
        self.log = log
        self._pending = b""
        threads = str(variant.options["threads"])
        environment = {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [str(variant.python), "-m", "tools.bench.peers.worker"]
        command += [variant.module, json.dumps(variant.options)]
        try:
            with log.open("wb") as errors:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=ROOT,
                    bufsize=0,
                    env=os.environ | environment,
                )
        except OSError as error:
            raise PeerError(f"{variant.name}: cannot start {variant.python}: {error.strerror}") from error
        try:
            ready = self._receive()
        except BaseException:
            self.close()
            raise
        self.version: str = ready["version"]
        self.load_s: float = ready["load_s"]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            PeerError: The worker answered with an error, ended, or took longer than the limit.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it said last is still to be read
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return self._receive()

    def close(self) -> None:
        """End the worker: first by closing its input, then by force."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _receive(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise PeerError(f"{self.variant.name}: {answer['error'].splitlines()[0]}")
        return answer

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + self.timeout_s
        while b"\n" not in self._pending:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise PeerError(f"{self.variant.name}: no answer in {self.timeout_s:.0f} s")
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                code = self.process.wait()
                raise PeerError(f"{self.variant.name}: ended with exit code {code}: {self._last_words()}")
            self._pending += piece
        line, self._pending = self._pending.split(b"\n", 1)
        return line

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing on its standard error"
