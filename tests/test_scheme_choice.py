"""The schemes of layers as a user says them: a word, a file, a table, or by layer."""

import pytest

import hetmp
from helpers.comparison import seeded
from hetmp import HetmpError
from hetmp.core.scheme_choice import is_word, read_schemes
from hetmp.models import build
from hetmp.run.config import train_config
from hetmp.run.config_file import read_config
from hetmp.slicing.layer_schemes import layer_schemes

RUN = {"model": "digits", "data": "digits"}


def graph():
    return hetmp.read_graph(seeded(lambda: build("digits", (1, 8, 8), 10)))


@pytest.mark.parametrize(
    ("word", "batch"),
    [("filters", 0), ("batch:0", 0), ("batch:1", 1), ("batch:3", 3), ("batch", 3)],
)
def test_a_word_says_which_layers_share_the_images(word, batch):
    read = graph()
    assert is_word(word)
    paths = [node.path for node in read.mixing()]
    assert layer_schemes(read, word) == dict.fromkeys(paths[:batch], "batch")
    plan = hetmp.plan_from_weights(read, [3, 1], word)
    assert [layer.weights for layer in plan.layers] == [(3.0, 1.0)] * batch + [()] * (3 - batch)


@pytest.mark.parametrize(
    ("schemes", "message"),
    [
        ("batch:4", "the model has 3 layers that mix channels: give K from 0 to 3"),
        ("batch:-1", "are not known: give filters, batch or batch:K"),
        ("images", "are not known: give filters, batch or batch:K"),
        ({"features.conv": "batch"}, "not a layer that mixes channels"),
        ({"features.conv1": "btch"}, "did you mean 'batch'"),
    ],
)
def test_what_is_not_known_is_refused(schemes, message):
    with pytest.raises(HetmpError, match=message):
        layer_schemes(graph(), schemes)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"schemes": "batch", "plan": "plan.json"}, "schemes and plan both set"),
        ({"schemes": "batch:2", "weights": "auto"}, "weights auto makes a plan"),
        ({"schemes": "inputs"}, "are not known: give filters, batch or batch:K"),
    ],
)
def test_a_run_has_schemes_or_a_plan(more, message):
    with pytest.raises(HetmpError, match=message):
        train_config(**RUN, **more)
    assert train_config(**RUN, weights=(3, 1), schemes="batch:2").schemes == "batch:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "must name schemes by layer"),
        ('["batch"]', "must name schemes by layer"),
        ('{"format": "hetmp-plan"}', "a plan is given with --plan"),
        ("batch", "is not JSON"),
    ],
)
def test_a_file_of_schemes_is_checked(tmp_path, text, message):
    path = tmp_path / "schemes.json"
    path.write_text(text)
    with pytest.raises(HetmpError, match=message):
        read_schemes(path)


def test_a_configuration_has_a_word_a_file_or_a_table(tmp_path):
    (tmp_path / "schemes.json").write_text('{"features.conv1": "batch"}')
    table = '[schemes]\n"features.conv1" = "batch"\n'
    for text, schemes in (
        ('schemes = "batch:1"\n', "batch:1"),
        ('schemes = "schemes.json"\n', {"features.conv1": "batch"}),
        (table, {"features.conv1": "batch"}),
    ):
        path = tmp_path / "run.toml"
        path.write_text('model = "digits"\ndata = "digits"\n' + text)
        assert read_config(path).fields["schemes"] == schemes
    path.write_text('model = "digits"\ndata = "digits"\nschemes = "batches"\n')
    with pytest.raises(HetmpError, match="is neither filters, batch, batch:K nor a file"):
        read_config(path)
