"""Predict what a step would take if some layers followed another scheme, all else as planned."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hetmp.core.errors import HetmpError
from hetmp.ops import SCHEMES, SchemeName
from hetmp.planner.choose_schemes import possible_schemes
from hetmp.planner.predict import Prediction
from hetmp.planner.tables import Tables
from hetmp.slicing.channel_groups import ChannelGroups
from hetmp.slicing.graph import ModelGraph, Node
from hetmp.slicing.plan import LayerPlan, Plan


@dataclass(frozen=True)
class Switch:
    """Layers that follow another scheme than planned, and the step that is predicted for that.

    Attributes:
        layers: their paths, in order.
        scheme: the scheme that they follow instead.
        prediction: for the ranks that take part.
    """

    layers: tuple[str, ...]
    scheme: SchemeName
    prediction: Prediction


class Switches:
    """Predicts steps in which some layers of a plan follow another scheme.

    A layer that begins to be cut along its channels has the counts of *plain*, unless the plan cuts
    layers that share its channels; the others keep theirs.

    Args:
        graph, groups: the model, and its channel groups.
        tables: measured times of the ranks that take part.
        plan: the plan of these ranks.
        plain: their plan with every layer by ``filters``.
        everywhere: their plan with every layer by ``batch`` that can; None if it was not measured.
        predict: predicts a step under a plan of these ranks.
    """

    def __init__(
        self,
        graph: ModelGraph,
        groups: ChannelGroups,
        tables: Tables,
        plan: Plan,
        plain: Plan,
        everywhere: Plan | None,
        predict: Callable[[Plan], Prediction],
    ) -> None:
        self.graph, self.plan = graph, plan
        self._groups, self._tables = groups, tables
        self._plain = {layer.name: layer for layer in plain.layers}
        self._by_batch = {
            layer.name for layer in (everywhere.layers if everywhere else ()) if layer.cuts_batch
        }
        sharing = [*plan.layers, *(everywhere.layers if everywhere else ())]
        self._weights = next((layer.weights for layer in sharing if layer.cuts_batch), ())
        self._predict = predict
        self._predicted: dict[tuple[tuple[str, ...], SchemeName], Prediction | None] = {}

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        """The operation of every layer that mixes channels, by path."""
        return {node.path: node for node in self.graph.mixing()}

    def others(self, name: str) -> list[SchemeName]:
        """Return the schemes that a layer could follow instead of its own."""
        node = self.nodes[name]
        if node.reason is not None:
            return []
        able = possible_schemes(self.graph, node, self._tables, self._by_batch)
        return [scheme for scheme in able if scheme != self.plan.layer(name).scheme]

    def cheapest(self, spans: Collection[Sequence[str]], scheme: SchemeName) -> Switch | None:
        """Return the switch to *scheme* with the least seconds; None if no span can follow it.

        Args:
            spans: sets of layers that may switch together; those that cannot stay as they are.
            scheme: what they would follow.
        """
        switches = [
            Switch(tuple(span), scheme, prediction)
            for span in spans
            if (prediction := self._of(tuple(span), scheme)) is not None
        ]
        return min(switches, key=lambda switch: switch.prediction.seconds, default=None)

    def _of(self, span: tuple[str, ...], scheme: SchemeName) -> Prediction | None:
        if (span, scheme) not in self._predicted:
            able = {name for name in span if scheme in self.others(name)}
            self._predicted[span, scheme] = self._switched(able, scheme) if able else None
        return self._predicted[span, scheme]

    def _switched(self, names: Collection[str], scheme: SchemeName) -> Prediction | None:
        layers = tuple(
            self._entry(layer, scheme) if layer.name in names else layer
            for layer in self.plan.layers
        )
        try:
            return self._predict(self.plan.model_copy(update={"layers": layers}))
        except HetmpError:  # images that lie on several ranks would be mixed, or a time is unknown
            return None

    def _entry(self, layer: LayerPlan, scheme: SchemeName) -> LayerPlan:
        kept = layer if self._channels_are_cut(layer) else self._plain[layer.name]
        weights = self._weights if SCHEMES[scheme].cuts_batch else ()
        return kept.model_copy(update={"scheme": scheme, "weights": weights})

    def _channels_are_cut(self, layer: LayerPlan) -> bool:
        """Return whether the plan has a use for the counts of a layer: those of the others were
        balanced for no work."""
        return any(piece.group.number in self._cut for piece in self._groups.pieces[layer.name])

    @cached_property
    def _cut(self) -> set[int]:
        """The numbers of the channel groups that the plan cuts somewhere."""
        return {
            piece.group.number
            for layer in self.plan.layers
            if not layer.cuts_batch and layer.scheme != "whole"
            for piece in self._groups.pieces[layer.name]
        }
