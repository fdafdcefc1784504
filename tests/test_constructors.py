"""Networks whose constructors look at values: built on the CPU where only shapes are needed."""

import json
import weakref

import numpy as np
import pytest
import torch
from own_network import by_value
from torch import nn

import hetmp
from helpers.everywhere import folder, refused_everywhere
from helpers.planning import world
from helpers.running import invoked
from hetmp import models
from hetmp.cluster import turns
from hetmp.core.errors import HetmpError
from hetmp.planner.profiling import links
from hetmp.run.build import with_values, without_values
from hetmp.run.config import train_config
from hetmp.run.train import train
from hetmp.tools.profile import ProfileConfig, profile_network

NAME = "own_network:by_value"
SIZES = ("--shape", "1,8,8", "--classes", "10")
SAID = f"{NAME} cannot be built without values (RuntimeError: Tensor.item() cannot be called on"
RUN = {"model": NAME, "data": "digits", "steps": 2, "profile_seconds": 0.3}


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Links are measured with little between exchanges: their times matter to no test."""
    monkeypatch.setattr(links, "CACHE", 1 << 12)


# --- one process


def outline(name: str) -> tuple[nn.Module, list[str]]:
    said: list[str] = []
    module, _ = models.outline(name, (1, 8, 8), 10, dtype="float64", say=said.append)
    return module, said


def test_only_shapes_are_kept_and_the_generator_stays(monkeypatch):
    alive = []

    def noted(*arguments):
        module = by_value(*arguments)
        alive.append(weakref.ref(module[0].weight))
        return module

    monkeypatch.setattr("own_network.by_value", noted)
    before = torch.get_rng_state()
    module, said = outline(NAME)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(said) == 1 and said[0].startswith(SAID)
    assert "own_network.py:" in said[0] and said[0].endswith("): built on the CPU")
    assert all(p.is_meta and p.dtype == torch.float64 for p in module.parameters())
    assert module[3].p == pytest.approx(0.1) and module[0].out_channels == 7
    assert [reference() for reference in alive] == [None]


def test_what_builds_without_values_is_built_so_and_nothing_is_said():
    module, said = outline("own_network:build")
    assert said == [] and all(tensor.is_meta for tensor in module.state_dict().values())


OWN = """
import torch
from torch import nn

RATES = torch.linspace(0, 0.1, 3)  # made when the file is imported


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight
        self.recurrent = nn.GRU(4, 4)
        self.register_buffer("rates", RATES + 1)
        self.rate = RATES.tolist()[2]
        self.chosen = torch.ones(2).tolist()


def tied(input_shape, classes):
    return Tied()


def numpys(input_shape, classes):
    return nn.Sequential(nn.Linear(2, int(torch.ones(2).numpy().sum())))


def wrong(input_shape, classes):
    raise KeyError("the author's own bug")


def deep(input_shape, classes):
    return nn.Linear(*[1, None])


def only_classes(classes):
    return nn.Linear(1, classes)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder, with networks that no other test has imported."""
    (tmp_path / "my_constructors.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_constructors", raising=False)


def test_ties_buffers_and_what_the_file_makes_keep_their_values(own):
    module, said = outline("my_constructors:tied")
    assert "my_constructors.py:16): built on the CPU" in said[0]
    assert module.a.weight is module.b.weight and module.a.weight.is_meta
    assert module.rates.tolist() == pytest.approx([1.0, 1.05, 1.1])
    assert all(weight.is_meta for weight in module.recurrent._flat_weights)


def test_a_tensor_that_numpy_is_to_read(own):
    module, said = outline("my_constructors:numpys")
    assert module[0].out_features == 2 and "my_constructors.py:24" in said[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_constructors:wrong", 'cannot be built: KeyError: "the author\'s own bug" at my_con'),
        ("my_constructors:deep", "raised TypeError: empty(): argument 'size' (position 1) must"),
        ("my_constructors:only_classes", "takes 1 positional argument but 2 were given; it is ca"),
        ("own_network:by_too_large_a_value", "cannot be built: ValueError: dropout probability"),
        ("my_constructors:nothing", "has no 'nothing'"),
    ],
)
def test_a_bug_of_the_users_is_named_and_nothing_else_is_said(own, name, words):
    said: list[str] = []
    with pytest.raises(HetmpError) as raised:
        models.outline(name, (1, 8, 8), 10, dtype="float32", say=said.append)
    assert words in str(raised.value) and said == []
    assert name.endswith(("only_classes", "nothing")) or ".py:" in str(raised.value)


def test_commands_that_need_no_ranks(tmp_path):
    shown = invoked("explain", NAME, *SIZES, "--weights", "3,1")
    assert shown.exit_code == 0 and shown.stderr.count(SAID) == 1 and "5/2" in shown.stdout
    profile = tmp_path / "profile.json"
    config = ProfileConfig(NAME, (1, 8, 8), 10, 4, seconds=0.1, filters_only=True)
    profile_network(config, profile)
    planned = invoked(
        "plan", NAME, *SIZES, "--profile", profile, "--out", tmp_path / "plan.json", "--json"
    )
    assert planned.stderr.count(SAID) == 1
    assert json.loads(planned.stdout)["plan"]["layers"][0]["channels"] == 7


# --- ranks


@pytest.mark.mpi
@pytest.mark.parametrize("way", ["auto", "profiles", "layerwise", "auto layerwise", "weights"])
def test_it_trains_and_one_rank_says_once_how_it_was_built(tmp_path, capsys, way):
    ranks, out = world().size, folder(tmp_path)
    ways = {
        "auto": {"weights": "auto"},
        "profiles": {"profiles": out / "library"},
        "layerwise": {"layerwise": True},
        "auto layerwise": {"weights": "auto", "layerwise": True},
        "weights": {"weights": (3.0, 1.0, 2.0, 1.0, 1.0)[:ranks]},
    }
    result = train(train_config(**RUN, **ways[way]))
    assert world().allgather(result.loss) == [result.loss] * ranks
    said = capsys.readouterr().out.count(SAID)
    plans = ranks > 1 and way in ("auto", "profiles")
    assert said == int(world().rank == 0 and (plans or "layerwise" in way))


@pytest.mark.mpi
def test_a_plan_that_names_its_model_is_compared_with_it(tmp_path):
    path = folder(tmp_path) / "plan.json"
    if world().rank == 0:
        ranks = world().size
        graph = hetmp.read_graph(*models.outline(NAME, (1, 8, 8), 10, dtype="float32", say=print))
        plan = hetmp.plan_from_weights(graph, [1.0] * ranks)
        plan.model_copy(update={"fingerprint": hetmp.slicing.graph.fingerprint(graph)}).save(path)
    world().Barrier()
    result = train(train_config(**RUN, plan=path))
    equal = train(train_config(**RUN))
    assert result.loss == equal.loss
    refused_everywhere("another model", model="own_network:build", plan=path)


@pytest.mark.mpi
def test_values_are_rank_0s_and_the_others_hold_none():
    """Those that plain torch draws, whatever the others draw."""
    group = hetmp.Group()
    torch.manual_seed(5 + group.rank)
    module = with_values(NAME, (1, 8, 8), 10, group)
    after = torch.rand(1)
    torch.manual_seed(5 + group.rank)
    wanted = by_value((1, 8, 8), 10)
    assert torch.equal(after, torch.rand(1))
    if group.is_root:
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor)
    assert all(p.is_meta != group.is_root for p in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())


@pytest.mark.mpi
@pytest.mark.parametrize("room", [0, 1 << 30, 1])
def test_ranks_of_a_host_take_turns_where_memory_is_short(monkeypatch, capsys, room):
    group = hetmp.Group()
    monkeypatch.setattr(turns, "free_memory", lambda device: room)
    at_work: list[int] = []

    def work() -> int:
        at_work.append(group.rank)
        return 100

    short = turns.in_turns(group, work)
    assert short == (room == 1 and group.size > 1) and at_work == [group.rank]
    module = without_values(NAME, (1, 8, 8), 10, group)
    assert all(p.is_meta for p in module.parameters())
    said = capsys.readouterr().out
    assert said.count(SAID) == int(group.is_root)
    assert ("one rank of a host after another" in said) == (short and group.is_root)


@pytest.mark.mpi
def test_a_constructor_that_fails_is_refused_once_for_all():
    words = "^model 'own_network:by_too_large_a_value' cannot be built: ValueError: dropout"
    with pytest.raises(HetmpError, match=words):
        without_values("own_network:by_too_large_a_value", (1, 8, 8), 10, hetmp.Group())
    np.testing.assert_array_equal(hetmp.Group().allgather(np.ones(1)), 1)  # and all go on
