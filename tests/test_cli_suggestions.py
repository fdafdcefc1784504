"""What is misspelt is refused with the nearest name that there is."""

import shlex
import shutil
import sys

import pytest

import hetmp
from helpers.running import hetmp_run
from hetmp.cli import program
from hetmp.core.suggestions import near_path, nearest

TRAIN = "train --model digits --data digits --steps 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the command lines below almost name."""
    top = tmp_path_factory.mktemp("almost")
    (top / "mynetworks.py").write_text("def build(shape, classes): pass\n")
    (top / "package").mkdir()
    (top / "package" / "__init__.py").touch()
    (top / "package" / "networks.py").write_text("def build(shape, classes): pass\n")
    (top / "runs" / "demo").mkdir(parents=True)
    (top / "runs" / "demo" / "model.h5").touch()
    (top / "weights.txt").write_text("1\n")
    for name in ("profile.json", "plan.json", "cluster.toml", "model.pt"):
        (top / name).touch()
    (top / "run.toml").write_text('model = "digits"\ndata = "digits"\nbatch_sise = 3\n')
    (top / "job.toml").write_text('template = "train"\n[[components]]\npartitio = "x"\n')
    (top / "setting.toml").write_text('template = "train"\nnotcie = 3\n')
    import torch

    from hetmp import models
    from hetmp.slicing.graph import read_graph

    with torch.device("meta"):
        module = models.build("digits", (1, 8, 8), 10)
    graph = read_graph(module, torch.empty((2, 1, 8, 8), device="meta"))
    text = hetmp.plan_from_weights(graph, [1]).model_dump_json()
    (top / "layer.json").write_text(text.replace("features.conv1", "features.conv_1"))
    (top / "scheme.json").write_text(text.replace('"filters"', '"filter"', 1))
    (top / "entry.json").write_text(text.replace('"counts"', '"count"', 1))
    return top


CASES = {
    "trian": "did you mean 'train'",
    "predcit x": "did you mean 'predict'",
    "--verison": "did you mean --version",
    "train --weihgts 1,1": "unknown option --weihgts: did you mean --weights? (hetmp train --help",
    "explain digits --wieghts 1": "did you mean --weights? (hetmp explain --help",
    "inspect runs/demo/model.h5 --vefiry": "did you mean --verify",
    f"{TRAIN} --optimizer adamv": "did you mean 'adam'",
    f"{TRAIN} --optimizer-option nesterof=true": "did you mean 'nesterov'",
    f"{TRAIN} --schedule cosin": "did you mean 'cosine'",
    f"{TRAIN} --device gpu": "unknown device 'gpu': did you mean 'cuda'",
    f"{TRAIN} --device CPU": "did you mean 'cpu'",
    f"{TRAIN} --dtype double": "did you mean 'float64'",
    f"{TRAIN} --on-nan stp": "did you mean 'stop'",
    f"{TRAIN} --view liv": "did you mean 'live'",
    f"{TRAIN} --out x --metrics cvs": "did you mean 'csv'",
    f"{TRAIN} --stop-signal SIGUSR1": "did you mean 'USR1'",
    f"{TRAIN} --on-save-error contine": "did you mean 'continue'",
    f"{TRAIN} --autocast bf16": "did you mean 'bfloat16'",
    f"{TRAIN} --weights aut": "did you mean auto",
    f"{TRAIN} --weights wieghts.txt": "did you mean weights.txt",
    f"{TRAIN} --plan pln.json": "did you mean plan.json",
    f"{TRAIN} --resume runs/dmo": "did you mean runs/demo",
    f"{TRAIN} --out x --resume atuo": "did you mean 'auto'",
    "train --model digit --data digits": "did you mean 'digits'",
    "train --model mynetwork:build --data digits --steps 1": "did you mean 'mynetworks'",
    "train --model mynetworks:buil --data digits --steps 1": "did you mean 'mynetworks:build'",
    "explain package.network:build --weights 1 --shape 1,8,8 --classes 2": "did you mean "
    "'networks'",
    "train --model digits --data digitz": "did you mean 'digits'",
    "train --model digits --data npz --data-path mynetwork.py": "did you mean mynetworks.py",
    "train --model digits --data folder --data-path run": "did you mean runs",
    "train --config rnu.toml": "did you mean run.toml",
    "train --config run.toml": "did you mean 'batch_size'",
    "explain digit --weights 1": "did you mean 'digits'",
    "explain digits --plan layer.json": "'features.conv1' (Conv2d), but 'features.conv_1'",
    "explain digits --plan scheme.json": "did you mean 'filters'",
    "explain digits --plan entry.json": "did you mean 'counts'",
    "profile digits --device gpu": "did you mean 'cuda'",
    "profile digits --dtype single": "did you mean 'float32'",
    "profile --show profle.json": "did you mean profile.json",
    "plan digits --profile profle.json": "did you mean profile.json",
    "plan digits --profile profile.json --objective tim": "did you mean 'time'",
    "plan digits --ranks-from clutser.toml": "did you mean cluster.toml",
    "plan digits --profile profile.json --out rnus/plan.json": "did you mean runs",
    "bench digits --only floo": "did you mean 'floor'",
    "bench digit": "did you mean 'digits'",
    "submit trian": "did you mean 'train'",
    "submit train --component partitio=new": "did you mean 'partition'",
    "submit --config job.toml --dry-run": "did you mean 'partition'",
    "submit --config setting.toml --dry-run": "did you mean 'notice'",
    "submit train --signal SIGUSR2": "did you mean 'USR2'",
    "submit train -- --weigths 3": "did you mean --weights? (hetmp train --help",
    "submit train -- --model digit --data digits": "did you mean 'digits'",
    "submit train --weights 3": "--weights belongs to the job: put it after --",
    "evaluate runs/dmo": "did you mean runs/demo?",
    "evaluate runs/dmo/model.h5": "did you mean runs/demo/model.h5?",
    "predict runs/demo --out x.csv --part tst": "did you mean 'test'",
    "inspect runs/demo/modle.h5": "did you mean runs/demo/model.h5?",
    "export runs/demo/modle.h5 x.pt": "did you mean runs/demo/model.h5?",
    "import modl.pt x.h5": "did you mean model.pt?",
    "report runs/dmo": "did you mean runs/demo?",
    "completion bsh": "did you mean 'bash'",
}


@pytest.mark.parametrize("line", CASES)
def test_what_is_misspelt_is_told_what_was_meant(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["hetmp", *shlex.split(line)])
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    assert program._ended() == 2
    said = capsys.readouterr().err
    assert CASES[line] in said
    assert said.count("hetmp: error: ") == 1 and "Traceback" not in said
    assert "Value error" not in said


def test_the_environment_is_looked_at_by_the_doctor():
    done = hetmp_run("doctor", HETMP_NODEKIND="new")
    assert done.returncode == 1
    assert "nothing reads HETMP_NODEKIND: did you mean HETMP_NODE_KIND?" in " ".join(
        done.stdout.split()
    )
    done = hetmp_run("doctor", HETMP_NODE_KIND="new")
    assert "HETMP_NODE_KIND=new" in done.stdout and "remedy: nothing reads" not in done.stdout


def test_what_is_like_nothing_is_given_no_hint(tmp_path):
    assert nearest("zzz", ["adam", "sgd"]) is None
    assert near_path(tmp_path / "no" / "such" / "thing") == ""
    assert near_path(tmp_path) == ""
    (tmp_path / "some.json").touch()
    assert near_path(tmp_path / "some.json") == ""
    assert near_path(tmp_path / "smoe.json") == f" (did you mean {tmp_path / 'some.json'}?)"


def test_a_folder_that_may_not_be_looked_into_gives_no_hint(tmp_path):
    (tmp_path / "some").touch()
    tmp_path.chmod(0)
    try:
        assert near_path(tmp_path / "smoe") in ("", f" (did you mean {tmp_path / 'some'}?)")
    finally:
        tmp_path.chmod(0o700)
        shutil.rmtree(tmp_path)
