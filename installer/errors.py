"""One tree of errors, a hint each, and the exit codes in one place.

An error tells three things: what was wrong, where, and what to do next. The first two are its
message, the third its hint. The class decides the exit code, which scripts rely on
(docs/operations.md lists them); nothing else in the project maps errors to codes.
"""

from __future__ import annotations

_WORDS = 300


class AirgapError(Exception):
    """Base of every error that the project raises on purpose.

    ``hint`` is one sentence with the next step; it is printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidInput(AirgapError):
    """A file or an option that a person wrote is wrong: file, line and key are in the message."""

    exit_code = 2


class NotTrusted(AirgapError):
    """The bundle may not be used: each refusal below has a class of its own."""

    exit_code = 3


class Unsigned(NotTrusted):
    """There is no signature member, or none with our name."""


class WrongSignature(NotTrusted):
    """No signature holds for the given key: other key, or other bytes."""


class TooFewSignatures(NotTrusted):
    """Signatures of trusted keys hold, but not as many as the trust root asks for."""


class Expired(NotTrusted):
    """The expiry of the manifest, or of the trust root, has passed."""


class Rollback(NotTrusted):
    """The bundle's serial is lower than one that this site has already seen."""


class WrongChannel(NotTrusted):
    """The bundle belongs to another channel than the site follows."""


class Corrupt(AirgapError):
    """Bytes differ from what was signed or locked: place and expected digest are in the message."""

    exit_code = 4


class PreflightFailed(AirgapError):
    """The machine, the cluster or the site can't take what was asked; nothing was changed."""

    exit_code = 5


class TransferFailed(AirgapError):
    """Network, registry or disk: what can be done again goes on where it stopped."""

    exit_code = 6


class NotFound(TransferFailed):
    """The other side answers, but does not have it."""


class DeploymentFailed(AirgapError):
    """Helm or the cluster refused; the journal lets the next run go on."""

    exit_code = 7


class AcceptanceFailed(AirgapError):
    """It is deployed, but the proof that it works failed."""

    exit_code = 8


class Interrupted(AirgapError):
    """Ctrl-C or a termination signal; partial work is kept for resume."""

    exit_code = 130


def cause_of(error: BaseException) -> str:
    """Name the innermost reason: libraries wrap it, and put URLs into what they wrap it with."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "reason", None)
        candidates = [inner, *error.args, error.__cause__, error.__context__]
        error = next((c for c in candidates if isinstance(c, BaseException)), error)
    text = " ".join(str(error).split())[:_WORDS] if isinstance(error, OSError) else ""
    return text if text and "://" not in text else type(error).__name__
