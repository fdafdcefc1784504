"""Names in state_dicts: the prefixes that wrappers put before them, the dicts that hold them.

``DataParallel`` and ``DistributedDataParallel`` save ``module.conv.weight``, ``torch.compile``
``_orig_mod.conv.weight``, a LightningModule what its attribute is called: ``model.conv.weight``.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "module",
    "net",
    "network",
    "weights",
)
"""Names under which training scripts keep a state_dict beside other things."""

INSIDE = "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"
"""Names that torch's wrappers put anywhere into a name, and nobody else does."""

WRAPPERS = (*INSIDE, "module", "model")
"""First parts of names that wrappers are known by, in files whose model is not known."""


def held_state(loaded: Any) -> Any:
    """Return the state_dict that a file's content holds under a usual name; else the content.

    >>> held_state({"epoch": 3, "model": {"state_dict": {"a.weight": 1}}})
    {'a.weight': 1}
    """
    while isinstance(loaded, Mapping):
        inner = next((loaded[n] for n in NESTED if isinstance(loaded.get(n), Mapping)), None)
        if not inner:
            break
        loaded = inner
    return loaded


def unwrapped_names(names: Iterable[str], wanted: Collection[str]) -> tuple[str, dict[str, str]]:
    """Find what wrappers put into *names* that keeps them from being the *wanted* ones.

    A prefix counts where none of the wanted names is there as it is, at least half of them are
    there behind it, and fewer behind any other.

    Args:
        names: of a state_dict.
        wanted: the model's own.

    Returns:
        What is to be taken off, empty if nothing is, and every name -> what it is without it.
        Names without the prefix stay.

    >>> unwrapped_names(["module.a.weight", "module.a.bias", "n"], ["a.weight", "a.bias"])
    ('module.', {'module.a.weight': 'a.weight', 'module.a.bias': 'a.bias', 'n': 'n'})
    >>> unwrapped_names(["a.weight", "b._orig_mod.weight"], ["a.weight", "b.weight"])
    ('_orig_mod.', {'a.weight': 'a.weight', 'b._orig_mod.weight': 'b.weight'})
    >>> unwrapped_names(["net.weight", "head.weight"], ["weight"])  # which one?
    ('', {'net.weight': 'net.weight', 'head.weight': 'head.weight'})
    """
    names, known = list(names), set(wanted)
    same = {name: name for name in names}
    bare = {name: _without_inside(name) for name in names}
    prefix = "" if known & set(bare.values()) else _prefix(bare.values(), known)
    bare = {name: own.removeprefix(prefix) for name, own in bare.items()}
    fit = [name for name, own in bare.items() if own in known and own != name]
    if not fit or len(set(bare.values())) < len(bare):  # two names would become one
        return "", same
    first, own = fit[0], bare[fit[0]]
    taken = first.removesuffix(own) if first.endswith(own) else f"{INSIDE[0]}."
    return taken, bare


def _prefix(names: Iterable[str], known: Collection[str]) -> str:
    """Return the prefix behind which most of the *known* names are; empty if none is clear."""
    fits: Counter[str] = Counter()
    for name in names:
        places = [place + 1 for place, letter in enumerate(name) if letter == "."]
        fits.update(name[:place] for place in places if name[place:] in known)
    ranked = [*fits.most_common(2), ("", 0), ("", 0)]
    (best, most), (_, next_most) = ranked[:2]
    return best if most > next_most and 2 * most >= len(known) else ""


def without_wrappers(names: Collection[str]) -> tuple[str, dict[str, str]]:
    """Take off what known wrappers put before all of *names*, whose model is not known.

    Returns:
        What was taken off, empty if nothing was, and every name -> what it is without it.

    >>> without_wrappers(["module._orig_mod.a.weight", "module._orig_mod.b"])
    ('module._orig_mod.', {'module._orig_mod.a.weight': 'a.weight', 'module._orig_mod.b': 'b'})
    >>> without_wrappers(["model.a", "criterion.weight"])[0], without_wrappers(["model"])[0]
    ('', '')
    """
    prefix = ""
    while names:
        rests = [name[len(prefix) :].partition(".") for name in names]
        first = rests[0][0]
        if first not in WRAPPERS or any(head != first or not rest for head, _, rest in rests):
            break
        prefix += f"{first}."
    bare = {name: _without_inside(name.removeprefix(prefix)) for name in names}
    if len(set(bare.values())) < len(bare):  # two names would become one
        bare = {name: name.removeprefix(prefix) for name in names}
    inside = any(not name.endswith(own) for name, own in bare.items())
    return prefix + f"{INSIDE[0]}." * inside, bare


def _without_inside(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in INSIDE)
