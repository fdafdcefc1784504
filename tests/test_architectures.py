"""Networks of public packages, sliced as they come: equal to the unsliced modules."""

import pytest

from cases.architectures import ARCHITECTURES, Architecture
from helpers.architecture_comparison import compare, figures_of
from helpers.comparison import world_size

SMALL = [architecture for architecture in ARCHITECTURES if architecture.small]

SCHEMES = {
    3: ("filters", "batch:3", "filters", "batch"),
    4: ("batch:3", "filters"),
    5: ("batch", "filters"),
}
"""By the number of ranks, in turn."""

WEIGHTS = {
    3: ((70, 25, 5), (1, 2, 3)),
    4: ((0, 3, 1, 2), (70, 25, 5, 4)),
    5: ((3, 0, 2, 1, 2), (0, 2, 1, 3, 1)),
}
"""By the number of ranks, in turn; other numbers would tell nothing more."""


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("architecture", SMALL, ids=lambda one: one.name)
def test_an_architecture_of_others_is_sliced_throughout_and_exact(
    architecture: Architecture,
) -> None:
    if world_size() not in WEIGHTS:
        pytest.skip("architectures of others are compared on 3 to 5 ranks")
    try:
        architecture.build()
    except ImportError as error:  # transformers raises it where torch is too old for it, too
        pytest.skip(f"needs {architecture.distribution}, an optional package: {error}"[:200])
    number, choices = SMALL.index(architecture), WEIGHTS[world_size()]
    schemes = SCHEMES[world_size()]
    differences, model = compare(
        architecture, choices[number % len(choices)], schemes[number % len(schemes)]
    )
    differences.assert_none()
    found = figures_of(model.hetmp.graph, model.hetmp.plan)
    assert not found.fallbacks
    assert found.whole == 0


def test_the_catalogue_names_each_architecture_once() -> None:
    names = [architecture.name for architecture in ARCHITECTURES]
    assert len(set(names)) == len(names)
    assert len(SMALL) >= 20
