"""The outcome of a verification: ``Verification``."""

import json
from dataclasses import asdict, dataclass


class UnverifiedWarning(UserWarning):
    """What was read of a module was not held against the module itself."""


@dataclass(frozen=True)
class Verification:
    """Whether what was read of a module was held against the module itself.

    Attributes:
        reason: why it was not; None where it was, and nothing differs.
        attributes: the plain attributes that the module's forward sets. A sliced model does not.
    """

    reason: str | None
    attributes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = "verified against the module"
        if self.reason is not None:
            text = f"not verified: {self.reason}"
        if self.attributes:
            text += f"; not set by the sliced model: {', '.join(self.attributes)}"
        return text

    def to_text(self) -> str:
        """Return it as JSON, to be sent to other ranks."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Verification":
        """Return what ``to_text`` wrote."""
        stored = json.loads(text)
        return cls(stored["reason"], tuple(stored["attributes"]))


NOT_ASKED = Verification("it was not asked for")
