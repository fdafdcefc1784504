"""Which code is the user's: neither torch's nor hetmp's."""

import importlib.util
import os

_HETMP = os.path.dirname(os.path.dirname(__file__))


def _libraries() -> tuple[str, ...]:
    """Return the folders whose code is not the user's; torch is not imported for that."""
    torch = importlib.util.find_spec("torch")
    return (_HETMP, *((torch and torch.submodule_search_locations) or ()))


_LIBRARIES = _libraries()


def is_users_file(file: str) -> bool:
    """Return whether a source *file* lies neither in torch's folder nor in hetmp's."""
    return not file.startswith(_LIBRARIES)
