"""One line of `seqrt doctor`."""

from dataclasses import dataclass
from typing import Literal

from seqrt.errors import SeqrtError

ONLY_GPU = "only needed for NVIDIA GPUs"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that was looked at. `state`: ok, failed (the CPU needs it) or absent (others need it)."""

    name: str
    state: Literal["ok", "failed", "absent"]
    detail: str
    advice: str | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it is as it should be."""
        return self.state == "ok"

    def line(self) -> str:
        """For people."""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.state:8}{self.name}: {self.detail}{advice}"


def parts(error: SeqrtError) -> tuple[str, str | None]:
    """What was wrong and what to do, which an error of seqrt says in this order."""
    detail, _, advice = str(error).partition("; ")
    return detail, advice or None


def absent(name: str, error: SeqrtError) -> Condition:
    """What an error says."""
    detail, advice = parts(error)
    return Condition(name, "absent", detail, advice)
