"""Names with prefixes: what ``hetmp import`` makes of them, and what loading says of the rest."""

import h5py
import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import pick_weights, seeded
from helpers.running import hetmp_run, refused
from helpers.saving import shared
from hetmp.checkpoint.torch_files import export_state, import_state
from hetmp.core.state_names import held_state, unwrapped_names


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(80, 3))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = small()

    def forward(self, x):
        return self.model(x)


def stored(path) -> set[str]:
    with h5py.File(path) as file:
        return {name for part in ("model", "buffers") for name in file.get(part, ())}


PLAIN = small().state_dict()


def below(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in PLAIN.items()}


# --- without a model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        (PLAIN, ""),
        (nn.DataParallel(small()).state_dict(), "module."),
        (below("_orig_mod."), "_orig_mod."),
        (below("module._orig_mod."), "module._orig_mod."),
        ({"epoch": 3, "state_dict": below("model.")}, "model."),
        ({"model": below("net.")}, ""),  # what a module of one's own may be called
        ({"model_state_dict": {"state_dict": PLAIN}}, ""),
    ],
)
def test_import_takes_the_prefix_of_wrappers_off(tmp_path, content, prefix):
    source, path = tmp_path / "a.pt", tmp_path / "a.h5"
    torch.save(content, source)
    done = import_state(source, path)
    assert (done.count, done.prefix, done.left_out) == (len(PLAIN), prefix, ())
    whole = held_state(content)
    assert stored(path) == {name.removeprefix(prefix) for name in whole}
    export_state(path, tmp_path / "b.pt")
    again = torch.load(tmp_path / "b.pt", weights_only=True)
    assert all(torch.equal(again[n.removeprefix(prefix)], whole[n]) for n in whole)
    done = import_state(source, path, keep_prefix=True)
    assert (done.count, done.prefix) == (len(PLAIN), "") and stored(path) == set(whole)


def test_a_part_that_was_compiled_alone():
    names = [name.replace("1.", "1._orig_mod.") for name in PLAIN]
    taken, bare = unwrapped_names(names, list(PLAIN))
    assert taken == "_orig_mod." and list(bare.values()) == list(PLAIN)


def test_import_says_what_it_took_off_and_left_out(tmp_path):
    source, path = tmp_path / "a.ckpt", tmp_path / "a.h5"
    torch.save({"state_dict": below("model.")}, source)
    done = hetmp_run("import", source, path)
    assert done.returncode == 0 and "took 'model.' off their names (--keep-prefix" in done.stdout
    torch.save({"state_dict": {**below("model."), "criterion.weight": torch.ones(3)}}, source)
    done = hetmp_run("import", source, path)  # not all names have it: whose it is cannot be seen
    assert done.stdout == f"wrote {len(PLAIN) + 1} tensors to {path}\n"
    assert stored(path) == {*below("model."), "criterion.weight"}
    for name in ("model", "model."):
        done = hetmp_run("import", source, path, "--strip-prefix", name)
        assert "took 'model.' off their names\n" in done.stdout
        assert "left out 1 without it: criterion.weight" in done.stdout
        assert stored(path) == set(PLAIN)
    done = hetmp_run("import", source, path, "--strip-prefix", "net")
    refused(done, "no name begins with 'net.'", "criterion., model.", code=2)
    done = hetmp_run("import", source, path, "--strip-prefix", "model", "--keep-prefix")
    refused(done, "taken off and kept", code=2)


# --- with one -----------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("build", "prefix", "wanted"),
    [
        (small, "backbone.", r"begin with 'backbone\.', .* --strip-prefix backbone "),
        (Around, "", r"begin with 'model\.', .* --keep-prefix"),
    ],
)
def test_loading_names_the_remedy_where_a_prefix_is_the_difference(tmp_path, build, prefix, wanted):
    folder = shared(tmp_path)
    model = hetmp.slice_model(seeded(build), pick_weights(0))
    before = hetmp.merge_model(model)
    if model.hetmp.group.is_root:
        torch.save(below(prefix), folder / "a.pt")
        import_state(folder / "a.pt", folder / "a.h5", keep_prefix=True)
    model.hetmp.group.meet()
    with pytest.raises(hetmp.HetmpError, match=wanted):
        hetmp.load(folder / "a.h5", model)
    after = hetmp.merge_model(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
