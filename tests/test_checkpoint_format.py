"""The file format: arithmetic, digests, native values, and files that are damaged or hostile."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetmp.checkpoint.cadence import Cadence
from hetmp.checkpoint.catalog import opened
from hetmp.checkpoint.folder import Folder
from hetmp.checkpoint.format import LEAF_BYTES, StoredShape, digest_of, escaped, unescaped
from hetmp.checkpoint.items import Item, as_stored, dtype_name, from_stored, tensor_item
from hetmp.checkpoint.regions import Cut, pack, pick, place, unpack
from hetmp.checkpoint.save_load import about_this_process
from hetmp.checkpoint.torch_files import export_state
from hetmp.checkpoint.values import as_array, as_value, flattened, nested
from hetmp.checkpoint.write import Contents, write_alone
from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout, Partition, Piece
from hetmp.core.state import FULL

# --- regions


@st.composite
def cuts(draw):
    """A tensor of up to four axes, cut along one in up to three pieces over up to four ranks."""
    ranks = draw(st.integers(1, 4))
    pieces = draw(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks), st.integers(1, 3)
            ),
            min_size=1,
            max_size=3,
        )
    )
    layout = Layout(tuple(Piece(Partition(tuple(counts)), block) for counts, block in pieces))
    sizes = draw(st.lists(st.integers(1, 4), min_size=0, max_size=3))
    axis = draw(st.integers(0, len(sizes)))
    sizes.insert(axis, layout.total)
    return Cut(tuple(sizes), axis, layout)


@given(cuts(), st.integers(0, 500), st.integers(0, 500))
def test_what_ranks_hold_of_a_run_is_all_of_it_once(cut, one, other):
    whole = np.arange(int(np.prod(cut.sizes))).reshape(cut.sizes)
    first, last = sorted(min(edge, whole.size) for edge in (one, other))
    run, again = np.full(last - first, -1), whole.reshape(-1)[first:last].copy()
    for rank in range(cut.layout.ranks):
        axes = [np.arange(size) for size in cut.sizes]
        held = [np.arange(piece.start, piece.stop) for piece in cut.layout.slices(rank)]
        axes[cut.axis] = np.concatenate([np.empty(0, int), *held])
        local = np.ascontiguousarray(whole[np.ix_(*axes)])
        regions = cut.regions(rank, first, last)
        place(run, regions, pack(cut.matrix(local, rank), regions))
        filled = local.copy()
        unpack(cut.matrix(filled, rank), regions, pick(again, regions))
        assert (filled == local).all()
    assert (run == again).all()


# --- names, chunks, digests


@given(st.text(min_size=1, max_size=20))
def test_names_come_back_and_are_no_paths(name):
    link = escaped(name)
    assert unescaped(link) == name
    assert "/" not in link and set(link) != {"."}


@pytest.mark.parametrize(
    ("sizes", "rows", "chunks"),
    [((), 1, None), ((0, 3), 1, None), ((5,), 5, (5,)), ((3, 1 << 20), 1, (1, 1 << 20)),
     ((1000, 1024), 256, (256, 1024))],
)  # fmt: skip
def test_chunks_are_whole_rows_of_about_a_mebibyte(sizes, rows, chunks):
    shape = StoredShape(sizes, 4)
    assert (shape.rows, shape.chunks) == (rows, chunks)


def test_the_digest_is_what_the_specification_says():
    array = np.random.default_rng(0).standard_normal((700, 1000))
    rows = LEAF_BYTES // 8000
    leaves = [hashlib.sha256(array[i : i + rows].tobytes()).digest() for i in range(0, 700, rows)]
    wanted = hashlib.sha256(b"float64 700,1000\n" + b"".join(leaves)).hexdigest()
    assert digest_of(array, "float64") == wanted


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
     "bfloat16", "complex64", "complex128"],
)  # fmt: skip
@pytest.mark.parametrize("sizes", [(), (0,), (3, 4)])
def test_every_dtype_is_stored_and_read_back(tmp_path, dtype, sizes):
    tensor = (torch.randn(sizes) * 9).to(getattr(torch, dtype))
    path = tmp_path / "a.h5"
    item = tensor_item("model/x", sizes, FULL, tensor)
    write_alone(path, Contents([item], {}, about_this_process()))
    with opened(path) as catalog:
        stored = catalog.stored["model/x"]
        catalog.verify(stored)
        found = from_stored(catalog.read(stored), stored.dtype)
    assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    assert dtype_name(found.dtype) == dtype


def test_a_tensor_that_does_not_lie_in_order_is_stored_in_order():
    tensor = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    assert (as_stored(tensor) == tensor.numpy()).all()
    assert as_stored(tensor).flags.c_contiguous


# --- native values


def test_values_come_back():
    given_values = {
        "note": "größer", "empty": "", "number": 3, "ratio": 0.1, "yes": True,
        "list": [1, 2, 3], "names": ["a", "bcd"], "array": np.eye(2, dtype=np.float32),
        "tensor": torch.arange(3), "in": {"a/b": {"%": 1}, "..": 2},
    }  # fmt: skip
    found = nested(
        {path[1:]: as_value(array, dtype) for path, array, dtype in flattened(given_values, "")}
    )
    assert found.keys() == given_values.keys()
    for name in ("note", "empty", "number", "ratio", "yes", "in"):
        assert found[name] == given_values[name]
        assert type(found[name]) is type(given_values[name])
    assert found["list"].tolist() == [1, 2, 3] and found["names"].tolist() == ["a", "bcd"]
    assert (found["array"] == np.eye(2)).all() and found["tensor"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value", [None, object(), [[1], [2, 3]], 2**70, torch.ones(2, dtype=torch.bfloat16), b"x"]
)
def test_a_value_without_a_native_form_is_refused_by_its_path(value):
    with pytest.raises(HetmpError, match="extra/a"):
        as_array(value, "extra/a")


# --- files that are not what they should be


def checkpoint(path: Path) -> Path:
    """A sound file with all kinds of datasets."""
    generator = np.random.default_rng(0)
    items = [
        Item("model/a.weight", (40, 30), "float32", None, generator.random((40, 30), np.float32)),
        Item("model/b.weight", (600, 900), "float32", None, generator.random((600, 900), "f4")),
        Item("model/scale", (), "float64", None, np.array(1.5)),
        Item("buffers/n", (3,), "int64", None, np.arange(3)),
        Item("plan", (), "utf-8", None, np.array(b'{"layers": []}')),
    ]
    write_alone(path, Contents(items, {"model/tied": "model/a.weight"}, about_this_process()))
    return path


def sound(path: Path) -> dict[str, bytes]:
    """All numbers of a file, every digest compared."""
    with opened(path) as catalog:
        found = {}
        for name, stored in catalog.stored.items():
            catalog.verify(stored)
            found[name] = np.asarray(catalog.read(stored)).tobytes()
        return found


def test_a_hundred_damages_are_refused_or_harmless(tmp_path):
    """Bits flipped, bytes overwritten, ends cut off: never other numbers, never another error."""
    original = checkpoint(tmp_path / "a.h5")
    expected, content = sound(original), original.read_bytes()
    chance = random.Random(1)
    refused = 0
    # Numbers make up nearly all of the file: half of the damage goes to what describes them.
    described = [i for i in range(0, len(content), 64) if b"\0" * 8 in content[i : i + 64]]
    for number in range(100):
        torn = bytearray(content)
        place = chance.choice(described) if number % 2 else chance.randrange(len(content))
        place = min(place + chance.randrange(64), len(content) - 1)
        kind = number % 5
        if kind == 0:
            torn = torn[:place]
        elif kind == 1:
            torn[place : place + 512] = bytes(len(torn[place : place + 512]))
        else:
            torn[place] ^= 1 << chance.randrange(8)
        damaged = tmp_path / f"{number}.h5"
        damaged.write_bytes(torn)
        try:
            assert sound(damaged) == expected
        except HetmpError as error:
            refused += 1
            assert damaged.name in str(error)
        damaged.unlink()
    assert refused >= 60


def test_a_damaged_dataset_is_named(tmp_path):
    path = checkpoint(tmp_path / "a.h5")
    content = path.read_bytes()
    with h5py.File(path) as file:
        where = file["model/b.weight"].id.get_chunk_info(1).byte_offset
    path.write_bytes(content[: where + 9] + b"\xff" + content[where + 10 :])
    with pytest.raises(HetmpError, match=r"a\.h5: /model/b\.weight"):
        sound(path)


def changed(path: Path, change) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def _external(file):
    file["model/x"] = h5py.ExternalLink("/etc/passwd", "/")


def _soft(file):
    file["model/x"] = h5py.SoftLink("/model")


def _loop(file):
    file["model/x"] = file["model"]


def _reference(file):
    file["model/x"] = np.array([file["model"].ref], dtype=h5py.ref_dtype)


def _endless_string(file):
    file.create_dataset("model/x", data="a" * 100, dtype=h5py.string_dtype())


def _huge(file):
    file.create_dataset("model/x", (1 << 40,), "f4", chunks=(1 << 20,))
    file["model/x"].attrs.update({"digest": np.bytes_(b"0" * 64), "dtype": np.bytes_(b"float32")})


def _packed(file):
    file.create_dataset("model/x", data=np.zeros(1 << 16, "f4"), compression="gzip")


def _elsewhere(file):
    file.create_dataset("model/x", (9,), "u1", external=[("/etc/passwd", 0, 9)])


def _virtual(file):
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "data", (3,))
    file.create_virtual_dataset("model/x", layout)


def _meta_elsewhere(file):
    del file["meta"]
    file["meta"] = h5py.ExternalLink("other.h5", "/")


def _no_digest(file):
    del file["model/scale"].attrs["digest"]


def _other_dtype(file):
    file["model/scale"].attrs["dtype"] = np.bytes_(b"float32")


def _other_shape(file):
    told = dict(file["model/a.weight"].attrs)
    data = file["model/a.weight"][()].T.copy()
    del file["model/a.weight"]
    file.create_dataset("model/a.weight", data=data, chunks=data.shape, fletcher32=True)
    file["model/a.weight"].attrs.update({"digest": told["digest"], "dtype": np.bytes_(b"float32")})


def _later(file):
    file["meta"].attrs["version"] = 2


def _stranger(file):
    file["meta"].attrs["format"] = np.bytes_(b"something")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_external, "/model/x is a soft or external link"),
        (_soft, "/model/x is a soft or external link"),
        (_loop, "/model/x contains itself"),
        (_reference, "/model/x has no attribute digest"),
        (_endless_string, "/model/x"),
        (_huge, "/model/x claims 4398046511104 bytes"),
        (_packed, "/model/x is stored with a filter"),
        (_elsewhere, "/model/x stores its numbers in other files"),
        (_virtual, "/model/x stores its numbers in other files"),
        (_meta_elsewhere, "is not a hetmp checkpoint"),
        (_no_digest, "/model/scale has no attribute digest"),
        (_other_dtype, "/model/scale is not stored in the type for float32"),
        (_other_shape, "/model/a.weight is damaged"),
        (_later, "has version 2 of the format; this hetmp reads up to 1"),
        (_stranger, "says format something"),
    ],
)
def test_hostile_and_foreign_files_are_refused(tmp_path, change, words):
    path = changed(checkpoint(tmp_path / "a.h5"), change)
    with pytest.raises(HetmpError) as refused:
        sound(path)
    assert words in str(refused.value)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "empty.h5").write_bytes(b"")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = 1
    for name, words in (
        ("text.h5", "cannot be opened"),
        ("empty.h5", "cannot be opened"),
        ("other.h5", "is not a hetmp checkpoint"),
        ("none.h5", "there is no checkpoint"),
    ):
        with pytest.raises(HetmpError, match=words):
            sound(tmp_path / name)


def test_other_names_in_the_root_are_ignored(tmp_path):
    path = checkpoint(tmp_path / "a.h5")
    expected = sound(path)

    def change(file):
        file["notes"] = h5py.ExternalLink("/nothing", "/")
        file["mine/x"] = np.zeros(3)

    assert sound(changed(path, change)) == expected


# --- the program


def hetmp(*args: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hetmp.cli", *map(str, args)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_inspect_shows_what_there_is(tmp_path):
    path = checkpoint(tmp_path / "a.h5")
    told = hetmp("inspect", path)
    assert "a.weight" in told and "40×30" in told and "2.06 MiB" in told
    assert "tied" in told and "1 rank" in told
    as_json = json.loads(hetmp("inspect", path, "--json"))
    assert as_json["datasets"]["model/b.weight"]["shape"] == [600, 900]
    with h5py.File(path) as file:
        norm = float(np.linalg.norm(file["model/a.weight"][()].astype(float)))
    assert as_json["datasets"]["model/a.weight"]["norm"] == pytest.approx(norm)


def test_inspect_verifies(tmp_path):
    path = checkpoint(tmp_path / "a.h5")
    assert "sound: 6 datasets" in hetmp("inspect", "--verify", path)
    with h5py.File(path, "r+") as file:
        file["buffers/n"][0] = 9
    assert "/buffers/n is damaged" in hetmp("inspect", "--verify", path, code=2)


def test_inspect_shows_one_tensor(tmp_path):
    path = checkpoint(tmp_path / "a.h5")
    told = hetmp("inspect", path, "--tensor", "b.weight")
    assert "/model/b.weight" in told and "deviation" in told and "█" in told
    assert "did you mean 'b.weight'" in hetmp("inspect", path, "--tensor", "b.wieght", code=2)


def test_inspect_tells_differences(tmp_path):
    one, other = checkpoint(tmp_path / "a.h5"), checkpoint(tmp_path / "b.h5")
    assert "the same: 6 datasets" in hetmp("inspect", "--diff", one, other)
    items = [Item("model/a.weight", (40, 30), "float32", None, np.zeros((40, 30), np.float32))]
    write_alone(other, Contents(items, {}, about_this_process()))
    told = hetmp("inspect", "--diff", other, one)
    assert "/model/a.weight" in told and "1.000e+00" in told
    assert "not in" in told and "6 datasets differ" in told


def test_inspect_needs_neither_torch_nor_mpi(tmp_path):
    path = checkpoint(tmp_path / "a.h5")
    script = (
        "import sys; from hetmp.cli import main\n"
        f"sys.argv = ['hetmp', 'inspect', {str(path)!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'mpi4py.MPI'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, stdout=subprocess.PIPE)


def test_export_and_import_are_inverse(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5))
    module.add_module("small", torch.nn.Linear(2, 2).to(torch.bfloat16))
    state = module.state_dict()
    state["tied"] = state["0.weight"]
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    assert "wrote 10 tensors" in hetmp("import", tmp_path / "a.pt", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file["buffers"]) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert file["model/tied"] == file["model/0.weight"]
    assert "wrote 10 tensors" in hetmp("export", tmp_path / "a.h5", tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found["tied"].data_ptr() == found["0.weight"].data_ptr()
    for nowhere in (tmp_path / "no folder" / "b.pt", tmp_path / "a.pt" / "b.pt"):
        with pytest.raises(HetmpError, match=r"b\.pt could not be written"):
            export_state(tmp_path / "a.h5", nowhere)


class Runs:
    """What a pickle could hold."""

    def __reduce__(self):
        return (Path("ran").write_text, ("code",))


def test_import_runs_no_code(tmp_path):
    torch.save({"a": Runs()}, tmp_path / "evil.pt")
    assert "could run" in hetmp("import", tmp_path / "evil.pt", tmp_path / "a.h5", code=2)
    torch.save([1, 2], tmp_path / "list.pt")
    refusal = hetmp("import", tmp_path / "list.pt", tmp_path / "a.h5", code=2)
    assert "contains no state_dict" in refusal
    (tmp_path / "text.pt").write_text("hello")
    hetmp("import", tmp_path / "text.pt", tmp_path / "a.h5", code=2)
    assert not Path("ran").exists() and not (tmp_path / "a.h5").exists()


# --- how often, and what is kept


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [("500", 500, "steps"), ("1step", 1, "steps"), ("2epochs", 2, "epochs"), ("90s", 90, "seconds"),
     ("10min", 600, "seconds"), ("1.5h", 5400, "seconds")],
)  # fmt: skip
def test_intervals(text, number, unit):
    assert Cadence.parse(text) == Cadence(number, unit)


@pytest.mark.parametrize("text", ["", "0", "-3", "x", "5 parsecs", "1.5epochs", "nan"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(HetmpError, match="checkpoint_every"):
        Cadence.parse(text)


def test_latest_leads_to_the_newest_and_old_ones_go(tmp_path):
    folder = Folder(tmp_path, keep=2, keep_every=30)
    for step in (10, 20, 30, 40, 50):
        folder.at(step).write_text(str(step))
        folder.written(step)
        assert (tmp_path / "latest.h5").read_text() == str(step)
    assert [step for step, _ in folder.checkpoints()] == [50, 40, 30]
    folder.at(35).write_text("35")  # taken up again after 30
    folder.written(35)
    assert [step for step, _ in folder.checkpoints()] == [35, 30]
    (tmp_path / ".step-00000070.h5.part").write_text("half")
    folder.tidy()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "latest.h5", "step-00000030.h5", "step-00000035.h5",
    ]  # fmt: skip
