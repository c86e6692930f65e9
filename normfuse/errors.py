"""What can go wrong, as a tree of exceptions.

::

    NormfuseError              exit status 2: the request cannot be carried out as it was made
    ├── ModelError             exit status 3: the model cannot be read, is not valid, or is not supported
    ├── TargetError            exit status 4: the execution provider is missing or failed
    ├── ParityError            exit status 1: the result does not compute what the original computes
    └── ExportError            exit status 3: a torch module could not be exported

Every message is one line that says what is wrong, where, and what to do about it.
"""

from typing import ClassVar

from normfuse.printable import printable


class NormfuseError(Exception):
    """The request cannot be carried out as it was made.

    Attributes:
        exit_status: what the command line exits with when this error ends it.
    """

    exit_status: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # whatever the names are that it quotes


class ModelError(NormfuseError):
    """The model cannot be read, is not valid ONNX, or uses what is not supported."""

    exit_status = 3


class TargetError(NormfuseError):
    """The execution provider is missing, or failed to run a model."""

    exit_status = 4


class ParityError(NormfuseError):
    """The result does not compute what the original computes.

    Attributes:
        report: what was done and how it was judged (`normfuse.Report`), where that is known.
    """

    exit_status = 1

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class ExportError(NormfuseError):
    """A torch module could not be exported to ONNX."""

    exit_status = 3
