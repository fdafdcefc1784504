"""Which layers follow which scheme, as a user says it in a word."""

from collections.abc import Mapping
from typing import cast

from hetmp.core.errors import HetmpError
from hetmp.core.scheme_choice import WORDS, is_word
from hetmp.core.suggestions import nearest, unknown_name
from hetmp.ops import SCHEMES, Mixing, SchemeName
from hetmp.slicing.batch_axis import batch_axis, images_of, no_batch_axis
from hetmp.slicing.graph import ModelGraph


def layer_schemes(graph: ModelGraph, schemes: str | Mapping[str, str]) -> dict[str, SchemeName]:
    """Return the schemes of the mixing layers that do not follow ``filters``, by path.

    Args:
        graph: the model.
        schemes: ``filters``; ``batch``, for every layer whose input has the batch as an axis;
            ``batch:K``, for the first K mixing layers; or a scheme by a layer's path.

    Raises:
        HetmpError: it is none of these, K is out of range, or one of the first K layers cannot
            follow ``batch``.
    """
    if not isinstance(schemes, str):
        return _checked(graph, schemes)
    if not is_word(schemes):
        raise HetmpError(f"schemes {schemes!r} are not known: give {WORDS}, or a scheme by layer")
    nodes = list({node.path: node for node in graph.mixing()}.values())
    if schemes == "filters":
        return {}
    if schemes == "batch":
        without = _without_batch(graph)
        return {node.path: "batch" for node in nodes if node.path not in without}
    first = int(schemes.partition(":")[2])
    if first > len(nodes):
        raise HetmpError(
            f"schemes {schemes!r}: the model has {len(nodes)} layers that mix channels: give K "
            f"from 0 to {len(nodes)}"
        )
    without = _without_batch(graph)
    for node in nodes[:first]:
        if node.path in without:
            raise HetmpError(no_batch_axis(node))
    return {node.path: "batch" for node in nodes[:first]}


def _checked(graph: ModelGraph, schemes: Mapping[str, str]) -> dict[str, SchemeName]:
    paths = {node.path for node in graph.mixing()}
    for path, scheme in schemes.items():
        if path not in paths:
            near = nearest(path, paths)
            hint = f" (did you mean {near!r}?)" if near else ""
            raise HetmpError(
                f"schemes name {path!r}, which is not a layer that mixes channels{hint}"
            )
        if scheme not in SCHEMES:
            raise unknown_name(f"scheme of {path!r}:", scheme, SCHEMES)
    known = cast(Mapping[str, SchemeName], schemes)
    return {path: scheme for path, scheme in known.items() if scheme != "filters"}


def _without_batch(graph: ModelGraph) -> set[str]:
    """Return the paths of mixing layers that are called, anywhere, on a value without the batch."""
    without = set()
    for trace in graph.traces:
        images = images_of(trace)
        for node in trace.nodes:
            if isinstance(node.rule, Mixing) and node.reason is None:
                operand = node.call.operand
                axis = node.rule.channel_axis(node.call.whole_layer, operand.dims)
                if batch_axis(operand, images, axis) is None:
                    without.add(node.path)
    return without
