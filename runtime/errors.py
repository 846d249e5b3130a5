"""Every error that crosses a module boundary.

RuntimeFault
├── UsageError          a bad flag, folder or checkpoint: one line and exit code 2 on the command line
│   └── CheckpointError   missing, unexpected or misshapen weights, listed together
├── RequestError        a request that cannot be served as asked: a 4xx that names the field
├── ConstraintError     a grammar that cannot go on; it ends the one choice that it constrains
└── OutOfPages          the page pool cannot give what was asked; the caller queues or preempts
"""


class RuntimeFault(Exception):
    """Root of the project's own errors."""


class UsageError(RuntimeFault):
    """The operator asked for something impossible. The text is one line: what, its value, what is allowed."""


class CheckpointError(UsageError):
    """A model folder whose weights do not fit its config."""


class RequestError(RuntimeFault):
    """A client asked for something impossible.

    `param` names the offending field as the client spells it, or is None when no single field is to blame.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


class ConstraintError(RuntimeFault):
    """A constraint that cannot go on: the choice that it belongs to fails with this message, and no other does."""


class OutOfPages(RuntimeFault):
    """Fewer free pages than asked for. Nothing was taken."""
