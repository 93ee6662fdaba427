"""Everything that seqrt raises on purpose.

SeqrtError
├── CheckpointError   a source model or head file is missing, damaged, unknown or contradicts itself
├── ExportError       a graph could not be made, quantised, checked or written
├── BundleError       a bundle is damaged, foreign, unsafe or lacks what was asked of it
├── EngineError       an engine (ONNX Runtime, TensorRT) is missing or failed
└── RequestError      the request cannot be served: prompt, tree, sampling or option values

A message is one line: what was wrong, with the value, and what to do about it. Where that is the value of an
option, the line begins with the option as the command line spells it. RequestError is also a ValueError.
"""


def first_line(error: BaseException) -> str:
    """The first line of what a library says was wrong, no full stop; the kind of its error where it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(" .") or type(error).__name__


class SeqrtError(Exception):
    """Base of every error that seqrt raises on purpose; its text is one line for the user."""

    @property
    def names_option(self) -> bool:
        """Whether it is an option whose value is out of range: the message then begins with the option."""
        return str(self).startswith("--")


class CheckpointError(SeqrtError):
    """A source model or head file is missing, damaged, unknown or contradicts itself."""


class ExportError(SeqrtError):
    """A graph could not be made, quantised, checked or written."""


class BundleError(SeqrtError):
    """A bundle is damaged, foreign, unsafe or lacks what was asked of it."""


class EngineError(SeqrtError):
    """An engine is missing or failed."""


class RequestError(SeqrtError, ValueError):
    """The request cannot be served: prompt, tree, sampling or option values."""
