"""Where the first layers are cut along the batch, a rank of a run decodes its own images only."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import hetmp
from helpers.data_files import digit_parts
from helpers.data_folders import write_folder
from helpers.saving import shared, world
from hetmp.data import batch_indices
from hetmp.data.sets import folder as folder_set
from hetmp.models.outline import outline
from hetmp.run.config import train_config
from hetmp.run.evaluate import evaluate_checkpoint
from hetmp.run.predict import predict
from hetmp.run.train import train
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.needed_rows import Need
from hetmp.slicing.runtime import Runtime

pytestmark = [pytest.mark.few_ranks, pytest.mark.mpi(min_size=2)]

TRAIN, TEST, BATCH, EPOCHS = 24, 10, 7, 2
"""Images of both parts; of a batch, of which the last of an epoch is shorter; of epochs."""

DIGITS = {
    "model": "digits", "data": "folder", "dtype": "float64", "batch_size": BATCH,
    "epochs": EPOCHS, "flip": True, "crop": 1, "mean": (90.0,) * 3, "std": (80.0,) * 3,
}  # fmt: skip


def weights() -> list[float]:
    return [3.0, 1.0, 2.0, 1.0, 1.5][: world().size]


def write(folder: Path, schemes: str) -> Path:
    """Digits as PNG files, and a plan; the same folder on all ranks."""
    folder = shared(folder)
    if world().rank == 0:
        train_images, train_labels, test_images, test_labels = digit_parts(TRAIN, TEST, channels=3)
        names = tuple(map(str, range(10)))
        write_folder(folder / "png", train_images, train_labels, names)
        write_folder(folder / "png", test_images, test_labels, names, part="test")
        module, example = outline("digits", (3, 8, 8), 10, dtype="float64", say=print)
        plan_from_weights(hetmp.read_graph(module, example), weights(), schemes).save(
            folder / "plan.json"
        )
    world().Barrier()
    return folder


def counted(monkeypatch) -> Counter:
    """How often this rank decodes images of each part, from now on."""
    decoded, decode = Counter(), folder_set.decode

    def counting(path, *more):
        decoded[path.parent.parent.name] += 1
        return decode(path, *more)

    monkeypatch.setattr(folder_set, "decode", counting)
    return decoded


def run(folder: Path, out: str, **more) -> list[list[float]]:
    """Train on all ranks; the losses of the steps, and what the evaluations came to."""
    settings = {**DIGITS, "data_path": folder / "png", "plan": folder / "plan.json", **more}
    train(train_config(out=folder / out, **settings), world())
    world().Barrier()
    lines = (folder / out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [[(r["loss"], r["accuracy"]) for r in records if r["kind"] == k]
            for k in ("step", "evaluation")]  # fmt: skip


def without_rows(monkeypatch) -> None:
    """As if every rank needed all images."""
    monkeypatch.setattr(Runtime, "need", property(lambda self: Need(None, "it is asked for")))


def share(batches: list[int], parts: int = 1) -> int:
    """How many images of *batches* this rank computes, each batch in so many parts."""
    count = 0
    for batch in batches:
        size = -(-batch // parts)
        for start in range(0, batch, size):
            some = hetmp.apportion(min(size, batch - start), weights())
            count += some.counts[world().rank]
    return count


@pytest.mark.parametrize(
    ("schemes", "accumulate"), [("batch:2", 1), ("batch", 3)], ids=["some layers", "in parts"]
)
def test_a_run_decodes_a_ranks_share_and_comes_to_the_same_digits(
    tmp_path, monkeypatch, schemes, accumulate
):
    """Augmented, with a shorter last batch: losses equal those of whole batches exactly."""
    folder = write(tmp_path, schemes)
    decoded = counted(monkeypatch)
    own = run(folder, "own", accumulate=accumulate, readers=2)
    sizes = [len(chosen) for chosen in batch_indices(TRAIN, BATCH, seed=0, epoch=0)]
    assert decoded["train"] == EPOCHS * share(sizes, accumulate)
    assert decoded["test"] == EPOCHS * share([TEST])
    with monkeypatch.context() as patched:
        without_rows(patched)
        whole = run(folder, "whole", accumulate=accumulate)
    assert own == whole
    assert len(own[0]) == EPOCHS * len(sizes)
    assert len(set(own[0])) == len(own[0])


def test_a_checkpoint_is_evaluated_and_predicts_on_rows(tmp_path, monkeypatch):
    folder = write(tmp_path, "batch:1")
    _, evaluations = run(folder, "run", epochs=1)
    decoded = counted(monkeypatch)
    settings = {"plan": folder / "plan.json"}
    judged = evaluate_checkpoint(folder / "run" / "model.h5", settings, world())
    assert (judged.loss, judged.accuracy) == evaluations[-1]
    assert decoded["test"] == share([TEST])
    decoded.clear()
    settings["batch_size"] = BATCH
    predict(folder / "run" / "model.h5", folder / "own.csv", settings, world())
    assert decoded["test"] == share([BATCH, TEST - BATCH])
    with monkeypatch.context() as patched:
        without_rows(patched)
        predict(folder / "run" / "model.h5", folder / "whole.csv", settings, world())
    world().Barrier()
    texts = [(folder / name).read_text() for name in ("own.csv", "whole.csv")]
    assert texts[0] == texts[1]
    assert len(list(csv.reader(texts[0].splitlines()))) == TEST + 1


def test_a_loss_that_is_not_finite_is_found_in_the_parts_of_a_batch(tmp_path):
    """The search for its cause gives the model rows as the step did."""
    folder = write(tmp_path, "batch:2")
    settings = {**DIGITS, "data_path": folder / "png", "plan": folder / "plan.json"}
    with pytest.raises(hetmp.HetmpError, match="the loss is nan at step") as caught:
        train(train_config(**settings, accumulate=3, lr=1e200), world())
    assert "value that is not finite is in" in str(caught.value)


def test_ranks_that_need_no_image_of_a_step_take_it_too(tmp_path):
    """More ranks than images: some give rows of none in every step."""
    folder = write(tmp_path, "batch")
    losses, _ = run(folder, "run", batch_size=12, accumulate=12, epochs=1)
    assert len(losses) == 2
    assert np.isfinite(losses).all()
