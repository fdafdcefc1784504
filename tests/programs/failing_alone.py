"""A program in which one rank raises while the others go on into a collective."""

import sys
from collections.abc import Iterator
from typing import Any

from hetmp.cli import main
from hetmp.data import Feed

FAILING_RANK = 1


def fail_on_one_rank(after: int) -> None:
    """Let the reading of batches break on one rank after some steps."""
    from mpi4py import MPI

    read = Feed.shuffled

    def shuffled(self: Feed, *args: Any, **options: Any) -> Iterator[Any]:
        for number, batch in enumerate(read(self, *args, **options)):
            if number == after and MPI.COMM_WORLD.Get_rank() == FAILING_RANK:
                raise OSError("the disk of this rank is gone")
            yield batch

    Feed.shuffled = shuffled  # type: ignore[method-assign]


if __name__ == "__main__":
    fail_on_one_rank(after=4)
    sys.argv = ["hetmp", *sys.argv[1:]]
    main()
