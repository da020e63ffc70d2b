"""The rolling checkpoint: nothing lost on the way to the disk and back, and nothing damaged
believed.
"""

import errno
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from titer.engine import checkpoint
from titer.engine.checkpoint import Rolling, pack, unpack
from titer.errors import StorageError

KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
tensors = st.builds(
    lambda shape, kind, seed: (
        torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 200
    ).to(kind),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(KINDS),
    st.integers(0, 99),
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | tensors
)
keys = st.text(max_size=4) | st.sampled_from(["a", "b", "a/b", "0", "model.layers.0.weight"])
states = st.recursive(
    leaves, lambda x: st.lists(x, max_size=4) | st.dictionaries(keys, x, max_size=4), max_leaves=12
)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a, b)
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(states)
def test_a_state_survives_packing(state):
    skeleton, flat = pack(state)
    assert same(state, unpack(json.loads(json.dumps(skeleton)), flat))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, states, max_size=4))
def test_a_state_survives_the_disk(tmp_path, state):
    rolling = Rolling(tmp_path / "cell")
    rolling.write(state)
    assert same(state, rolling.read())


def test_names_that_look_alike_do_not_meet():
    state = {
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
        "c": (torch.full((1,), 2.0), [torch.full((1,), 3.0)]),
    }
    skeleton, flat = pack(state)
    assert len(flat) == 4 and same(state, unpack(skeleton, flat))


def test_a_packed_tensor_is_a_copy():
    weight = torch.zeros(3)
    _, flat = pack({"w": weight})
    weight += 1
    assert next(iter(flat.values())).tolist() == [0, 0, 0]


STATE = {"step": 3, "weights": {"w": torch.arange(64.0)}}


@pytest.fixture
def rolling(tmp_path):
    made = Rolling(tmp_path / "work" / "cell")
    made.write(STATE)
    assert same(STATE, made.read())
    return made


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_any_damaged_byte_means_no_checkpoint(rolling, file):
    path = rolling.directory / file
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert rolling.read() is None, f"byte {position} of {len(whole)}"
    path.write_bytes(whole)
    assert same(STATE, rolling.read())


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 40, -1])
def test_a_truncated_file_means_no_checkpoint(rolling, file, keep):
    path = rolling.directory / file
    path.write_bytes(path.read_bytes()[:keep])
    assert rolling.read() is None


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_missing_file_means_no_checkpoint(rolling, file):
    (rolling.directory / file).unlink()
    assert rolling.read() is None


def test_there_may_be_none(tmp_path):
    assert Rolling(tmp_path / "none").read() is None


def test_a_checkpoint_of_another_version_is_not_continued(rolling, monkeypatch):
    monkeypatch.setattr("titer.engine.checkpoint.__version__", "0.0.other")
    assert rolling.read() is None


def test_tensors_of_another_checkpoint_are_noticed(rolling, tmp_path):
    """A crash between two writes cannot mix them, but a copied directory can."""
    other = Rolling(tmp_path / "other")
    other.write({"step": 3, "weights": {"w": torch.arange(64.0) + 1}})
    (other.directory / "tensors.safetensors").replace(rolling.directory / "tensors.safetensors")
    assert rolling.read() is None


def test_it_is_replaced_and_leaves_nothing_beside_it(rolling):
    rolling.write({"step": 4})
    assert rolling.read() == {"step": 4}
    assert [p.name for p in rolling.directory.parent.iterdir()] == ["cell"]
    rolling.delete()
    assert list(rolling.directory.parent.iterdir()) == [] and rolling.read() is None


def test_deleting_takes_unfinished_ones_along(rolling):
    for name in ("cell.123.new", "cell.old"):
        (rolling.directory.parent / name).mkdir()
    rolling.delete()
    assert list(rolling.directory.parent.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_readably_and_the_checkpoint_before_survives(
    rolling, monkeypatch, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(StorageError, match="free space"):
        rolling.write({"step": 4})
    assert same(STATE, rolling.read())
    assert [p.name for p in rolling.directory.parent.iterdir()] == ["cell"]


def test_it_is_due_only_after_so_many_seconds(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    rolling = Rolling(tmp_path / "cell", every_s=600)
    assert not rolling.due()  # a short cell never writes one
    clock.now += 599
    assert not rolling.due()
    clock.now += 1
    assert rolling.due()
    rolling.write({})
    assert not rolling.due()
    clock.now += 600
    assert rolling.due()


def test_the_default_is_every_ten_minutes(tmp_path):
    assert Rolling(tmp_path / "cell").every_s == 600
