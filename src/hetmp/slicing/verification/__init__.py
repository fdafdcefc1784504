"""Hold what was read of a module against the module itself: ``verify``, before it is sliced."""

from hetmp.slicing.verification.verification import NOT_ASKED, UnverifiedWarning, Verification
from hetmp.slicing.verification.verify import verify

__all__ = ["NOT_ASKED", "UnverifiedWarning", "Verification", "verify"]
