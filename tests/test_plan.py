"""The plan as a document: made from weights, written, read, changed, refused."""

import json
import re

import pytest
from torch import nn

from hetmp.core.documents import validated
from hetmp.core.errors import HetmpError
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.graph import read_graph
from hetmp.slicing.plan import LayerPlan, Plan, PredictedLayer


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 60, 3), nn.BatchNorm2d(60), nn.ReLU()),
        nn.ConvTranspose2d(60, 7, 2),
        nn.Flatten(),
        nn.Linear(28, 10),
    )


@pytest.fixture
def plan() -> Plan:
    return plan_from_weights(read_graph(network()), (70, 25, 5))


def test_the_default_plan(plan):
    """Filters everywhere, in proportion to the weights, layer by layer."""
    assert plan.ranks == 3
    assert [(x.name, x.kind, x.channels, x.scheme, x.counts) for x in plan.layers] == [
        ("0.0", "Conv2d", 60, "filters", (42, 15, 3)),
        ("1", "ConvTranspose2d", 7, "filters", (5, 2, 0)),
        ("3", "Linear", 10, "filters", (7, 3, 0)),
    ]
    assert plan.layer("0.0").partition.slice(1) == slice(42, 57)


def test_weights_that_cannot_be_used():
    with pytest.raises(HetmpError, match="all weights are 0"):
        plan_from_weights(read_graph(network()), (0, 0))


def test_json_there_and_back(plan, tmp_path):
    plan = plan.with_layer("1", scheme="inputs").with_layer("3", scheme="whole")
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert Plan.load(str(path)) == plan
    document = json.loads(path.read_text())
    assert document["format"] == "hetmp-plan"
    assert document["version"] == 4
    assert document["layers"][1] == {
        "name": "1",
        "kind": "ConvTranspose2d",
        "channels": 7,
        "scheme": "inputs",
        "counts": [5, 2, 0],
        "weights": [],
        "pieces": [],
        "backward": None,
    }


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_of_an_older_version_is_read_and_written_anew(plan, tmp_path, version):
    path = tmp_path / "plan.json"

    def made_older(document):
        document["version"] = version
        del document["predicted_alternatives"]
        for layer in document["layers"]:
            del layer["backward"]
            if version < 3:
                del layer["weights"]
        if version == 1:
            del document["predicted"]

    path.write_text(edited(plan, made_older))
    assert Plan.load(path) == plan
    Plan.load(path).save(path)
    assert json.loads(path.read_text())["version"] == 4


# --- what the backward pass has of a layer


def test_the_backward_choices_of_layers_by_patterns(plan, tmp_path):
    changed = plan.with_backward({"*": "regather", "[1-3]": "recompute", "3": None})
    assert [(layer.name, layer.backward) for layer in changed.layers] == [
        ("0.0", "regather"),
        ("1", "recompute"),
        ("3", None),
    ]
    path = tmp_path / "plan.json"
    changed.save(path)
    assert Plan.load(path) == changed
    assert changed.with_layer("1", scheme="inputs").layer("1").backward == "recompute"
    assert changed.spread([0, 1, 2], 4).of_members() == changed
    assert changed.backward_by_layer(False) == {
        "0.0": "regather",
        "1": "recompute",
        "3": "keep",
    }
    assert changed.backward_by_layer(True)["3"] == "regather"


def test_backward_choices_that_there_are_not(plan):
    def set_nothing(document):
        document["layers"][1]["backward"] = "nothing"

    with pytest.raises(HetmpError, match=r"unknown layer 'head\.\*' \(known: 0\.0, 1, 3\)"):
        plan.with_backward({"head.*": "recompute"})
    with pytest.raises(HetmpError, match="unknown backward 'recomputes': did you mean 'recompute'"):
        plan.with_backward({"1": "recomputes"})
    with pytest.raises(HetmpError, match=r"layers.1.backward: .*'keep', 'regather' or 'recompute'"):
        validated(Plan, json.loads(edited(plan, set_nothing)), "plan")


# --- scheme batch: the weights of a batch


def test_a_layer_that_shares_the_images_there_and_back(plan, tmp_path):
    changed = plan.with_layer("1", scheme="batch", weights=(7, 2, 1)).with_layer(
        "3", scheme="batch"
    )
    assert changed.layer("1").weights == (7, 2, 1)
    assert changed.layer("3").weights == (7, 3, 0)  # as its channels were shared
    changed.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == changed
    back = changed.with_layer("1", scheme="filters")
    assert back.layer("1") == plan.layer("1")
    # 60, 7 and 10 channels; of the 7, as many as are each rank's share of the images.
    assert changed.held == (42 + 5 + 7, 15 + 1 + 3, 3 + 1 + 0)
    assert (plan.shared, changed.shared) == ("channels", "channels and images")


@pytest.mark.parametrize("schemes", ["batch", {"0.0": "batch", "1": "inputs"}])
def test_a_plan_made_with_schemes(schemes):
    made = plan_from_weights(read_graph(network()), (70, 25, 5), schemes)
    first, second, _ = made.layers
    assert (first.scheme, first.weights) == ("batch", (70, 25, 5))
    assert second.scheme == (schemes if schemes == "batch" else "inputs")


def test_weights_of_images_go_with_their_ranks(plan):
    changed = plan.with_layer("1", scheme="batch", weights=(7, 2, 1))
    wide = changed.spread((4, 1, 2), 5)
    assert wide.layer("1").weights == (0, 2, 1, 0, 7)
    assert wide.left_out == (0, 3)
    assert wide.of_members().layer("1").weights == (2, 1, 7)
    assert Plan.model_validate_json(wide.model_dump_json()) == wide
    with pytest.raises(ValueError, match="left_out names rank 2, which has images of '1'"):
        Plan.model_validate_json(edited(changed, _without_rank_2))


def _without_rank_2(document):
    document["left_out"] = [2]
    for layer in document["layers"]:
        layer["counts"] = [layer["channels"], 0, 0]


def test_a_changed_plan_has_no_prediction(plan):
    layer = PredictedLayer(name="", compute=(0.1, 0.1, 0.1), exchange=0.0, idle=(0.0, 0.0, 0.0))
    predicted = plan.model_copy(update={"predicted_seconds": 0.1, "predicted": (layer,)})
    changed = predicted.with_layer("1", scheme="inputs")
    assert changed.predicted_seconds is None and changed.predicted == ()


def test_the_counts_of_pieces():
    """A layer whose channels come in pieces; other counts of it come in one."""
    layer = LayerPlan(name="0", kind="Conv2d", channels=7, counts=(4, 3), pieces=((3, 1), (1, 2)))
    assert layer.layout.slices(0) == (slice(0, 3), slice(4, 5))
    plan = Plan(ranks=2, layers=(layer,))
    assert plan.with_layer("0", scheme="whole").layer("0").pieces == layer.pieces
    assert plan.with_layer("0", counts=(5, 2)).layer("0").pieces == ()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    with pytest.raises(ValueError, match=r"sum to \(3, 4\), counts are \(4, 3\)"):
        LayerPlan(name="0", kind="Conv2d", channels=7, counts=(4, 3), pieces=((3, 1), (0, 3)))


def test_a_layer_is_changed_in_a_copy(plan):
    other = plan.with_layer("3", scheme="inputs", counts=[0, 4, 6])
    assert (other.layer("3").scheme, other.layer("3").counts) == ("inputs", (0, 4, 6))
    assert (plan.layer("3").scheme, plan.layer("3").counts) == ("filters", (7, 3, 0))
    assert other.layers[:2] == plan.layers[:2]
    assert other.with_layer("3", scheme="filters", counts=(7, 3, 0)) == plan


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "0.O", "scheme": "whole"}, "unknown layer '0.O': did you mean '0.0'"),
        ({"name": "3", "scheme": "filter"}, "unknown scheme 'filter': did you mean 'filters'"),
        (
            {"name": "3", "scheme": "zzz"},
            r"unknown scheme 'zzz' \(known: batch, filters, inputs, whole",
        ),
        ({"name": "3", "counts": (5, 3, 1)}, r"\(5, 3, 1\) sum to 9, the layer has 10"),
        ({"name": "3", "counts": (5, 5)}, "layer '3' has 2 counts, the plan is for 3 ranks"),
        ({"name": "3", "counts": (12, -2, 0)}, "rank 1 -2"),
        ({"name": "3", "counts": (9.5, 0.5, 0)}, "layers.2.counts"),
    ],
)
def test_changes_that_cannot_be_made(plan, change, named):
    with pytest.raises(HetmpError, match=named):
        plan.with_layer(**change)


def edited(plan: Plan, edit) -> str:
    document = json.loads(plan.model_dump_json())
    edit(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda d: d.update(format="hetmp-profile"), "format: .*hetmp-plan"),
        (
            lambda d: d.update(version=5),
            "version: 5 is newer than this hetmp reads .1 to 4.: use a",
        ),
        (lambda d: d.update(version="3"), "version: .*1, 2, 3 or 4"),
        (lambda d: d["layers"][1].update(scheme="batch"), "layers.1: no weights given"),
        (
            lambda d: d["layers"][1].update(scheme="batch", weights=[1, 2]),
            "layers.1: .*2 weights.* 3 ranks",
        ),
        (
            lambda d: d["layers"][1].update(scheme="batch", weights=[0, 0, 0]),
            "layers.1: all weights are 0",
        ),
        (lambda d: d["layers"][1].update(weights=[1, 2, 3]), "layers.1: .*are for scheme 'batch'"),
        (
            lambda d: d["layers"][1].update(scheme="batch", weights=[1, -2, 3]),
            "layers.1.weights.1: .*0",
        ),
        (lambda d: d.update(ranks=0), "ranks: .*1"),
        (lambda d: d.update(ranks=4), "layer '0.0' has 3 counts, the plan is for 4 ranks"),
        (lambda d: d.update(rank=3), "rank: "),
        (lambda d: d.pop("layers"), "layers: "),
        (lambda d: d["layers"][1].update(scheme="filter"), "layers.1.scheme: .*filters"),
        (lambda d: d["layers"][1].update(counts=[1, 2, 3]), "layers.1: .*sum to 6.* has 7"),
        (lambda d: d["layers"][2].pop("counts"), "layers.2.counts: "),
        (lambda d: d["layers"][2].update(channel=3), "layers.2.channel: "),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(plan, tmp_path, edit, named):
    path = tmp_path / "plan.json"
    path.write_text(edited(plan, edit))
    with pytest.raises(HetmpError) as refused:
        Plan.load(path)
    assert re.search(named, str(refused.value))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"null"])
def test_a_file_that_is_no_plan(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(HetmpError, match=re.escape(str(path))):
        Plan.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(HetmpError, match=r"none\.json cannot be read"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(HetmpError, match="cannot be read"):
        Plan.load(tmp_path)


def test_a_plan_made_by_hand_is_checked_too():
    layer = LayerPlan(name="0", kind="Conv2d", channels=3, counts=(1, 2))
    with pytest.raises(ValueError, match="layer '0' has 2 counts, the plan is for 3 ranks"):
        Plan(ranks=3, layers=(layer,))
    with pytest.raises(ValueError, match="sum to 3, the layer has 4"):
        LayerPlan(name="0", kind="Conv2d", channels=4, counts=(1, 2))
    with pytest.raises(ValueError, match="frozen"):
        layer.scheme = "whole"


# --- ranks that take no part


def test_a_plan_for_some_of_the_ranks_there_and_back(plan):
    wide = plan.spread((4, 1, 2), 5)
    assert wide.left_out == (0, 3)
    assert wide.members == (1, 2, 4)
    assert wide.layer("0.0").counts == (0, 15, 3, 0, 42)
    assert wide.of_members().layer("0.0").counts == (15, 3, 42)
    assert wide.of_members().left_out == ()
    assert plan.spread((0, 1, 2), 3) == plan == plan.of_members()
    assert plan.members == (0, 1, 2)
    assert plan.spread((0, 1, 3), 4).of_members() == plan
    assert Plan.model_validate_json(wide.model_dump_json()) == wide


def test_pieces_and_devices_go_with_their_ranks():
    layer = LayerPlan(name="0", kind="Conv2d", channels=7, counts=(4, 3), pieces=((3, 1), (1, 2)))
    wide = Plan(ranks=2, layers=(layer,)).spread((0, 2), 3)
    assert wide.layers[0].pieces == ((3, 0, 1), (1, 0, 2))
    named = wide.model_copy(update={"devices": ("a", "b", "c")})
    assert named.of_members().devices == ("a", "c")
    assert named.of_members().layers[0].pieces == layer.pieces


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda d: d.update(left_out=[2]), "names rank 2, which has channels of '0.0'"),
        (lambda d: d.update(left_out=[3]), "names rank 3 of 3"),
        (lambda d: d.update(left_out=[-1]), "names rank -1 of 3"),
        (lambda d: d.update(layers=[], left_out=[0, 1, 2]), "names every rank"),
        (lambda d: d.update(devices=["a", "b"]), "2 devices for 3 ranks"),
    ],
)
def test_ranks_that_cannot_be_left_out(plan, edit, named):
    with pytest.raises(ValueError, match=named):
        Plan.model_validate_json(edited(plan, edit))
