"""The time of a step by layer and rank: the ``layers`` record of the metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.cluster import Group
from hetmp.slicing.recording.recorder import PHASES, Recorder, StepRecording, computed

Array = npt.NDArray[np.float64]


def layer_times(group: Group, recorder: Recorder, steps: Sequence[StepRecording]) -> dict[str, Any]:
    """Return medians over *steps*, which all ranks took together, on every rank. Collective.

    The rank that comes last to an exchange does not wait in it, so the shortest time that any
    rank spent in one is its cost, and what a rank spent beyond that is waiting.

    Args:
        group: the ranks that took the steps.
        recorder: made the recordings.
        steps: the recordings of this rank.

    Returns:
        ``layers``, ``exchanges`` and ``rest`` as docs/formats.md describes them. Seconds and
        bytes are of a step, in lists with a number per rank.
    """
    places, layers = recorder.places, recorder.layers
    parts = [computed(step) for step in steps]
    compute = np.array(
        [[[part.get((layer, name), 0.0) for name in _PARTS] for layer in layers] for part in parts]
    )  # (steps, layers, parts)
    phases = np.array([[part.get((name, "phase"), 0.0) for name in PHASES] for part in parts])
    met = np.zeros((len(steps), len(places), 3))  # seconds, calls, bytes
    for i, step in enumerate(steps):
        for meeting in step.meetings:
            met[i, meeting.place] += meeting.seconds, 1, meeting.bytes
    compute_by_rank = np.median(group.allgather(compute), axis=1)  # (ranks, layers, parts)
    phases_by_rank = np.median(group.allgather(phases), axis=1)
    met_by_rank = group.allgather(met)  # (ranks, steps, places, 3)
    seconds = met_by_rank[..., 0]
    cost = np.median(seconds.min(axis=0), axis=0)  # (places,)
    waiting = np.median(seconds - seconds.min(axis=0), axis=1)  # (ranks, places)
    calls, sizes = met_by_rank[..., 1].mean(axis=(0, 1)), met_by_rank[..., 2].mean(axis=1)
    at = {layer: [i for i, place in enumerate(places) if place.layer == layer] for layer in layers}
    return {
        "layers": [
            {
                "name": layer,
                "forward": _listed(compute_by_rank[:, i, 0]),
                "backward": _listed(compute_by_rank[:, i, 1:].sum(axis=1)),
                "exchange": round(float(cost[at[layer]].sum()), 7),
                "waiting": _listed(waiting[:, at[layer]].sum(axis=1)),
            }
            for i, layer in enumerate(layers)
        ],
        "exchanges": [
            {
                "name": place.name,
                "collective": place.collective,
                "direction": place.direction,
                "calls": round(float(calls[i]), 2),
                "bytes": sizes[:, i].round().astype(int).tolist(),
                "exchange": round(float(cost[i]), 7),
                "waiting": _listed(waiting[:, i]),
            }
            for i, place in enumerate(places)
            if calls[i] and place.collective != "-"
        ],
        "rest": {name: _listed(phases_by_rank[:, i]) for i, name in enumerate(PHASES)},
    }


_PARTS = ("forward", "backward", "parameters")


def _listed(seconds: Array) -> list[float]:
    return [round(float(value), 7) for value in seconds]
