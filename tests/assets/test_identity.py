"""A model's identity is its content: a copy is the same model, and a changed one is another."""

import json
import os
import shutil

import pytest
import safetensors.torch

from titer.assets.identity import identify
from titer.assets.models import load_model
from titer.assets.packages import PACKAGED
from titer.assets.saving import save_model
from titer.errors import AssetError, UnknownNameError
from titer.study.reference import ModelRef


@pytest.fixture
def saved(tmp_path):
    loaded = load_model(ModelRef(source="tiny", name="base"))
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    return tmp_path / "model"


def of(path):
    return identify(ModelRef(source="path", name=str(path)))


def test_a_copy_is_the_same_model(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere") == of(saved)
    (saved / "notes.md").write_text("what is written beside a model is not the model")
    (saved / "checkpoint").mkdir()
    assert of(tmp_path / "elsewhere") == of(saved)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
)
@pytest.mark.parametrize("change", ["flip", "remove", "rename"])
def test_any_other_content_is_another_model(saved, name, change):
    before, file = of(saved), saved / name
    if change == "flip":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif change == "remove":
        file.unlink()
    else:
        file.rename(saved / f"old-{name}")
    assert of(saved) != before


def test_a_gguf_file_is_identified_by_its_bytes(tmp_path):
    for name, body in (("a.gguf", b"GGUF one"), ("b.gguf", b"GGUF two")):
        (tmp_path / name).write_bytes(body)
    assert of(tmp_path / "a.gguf") != of(tmp_path / "b.gguf")


def test_tiny_models_and_packages_are_identified_without_loading():
    tiny = {identify(ModelRef(source="tiny", name=n)) for n in ("base", "aligned", "untaught")}
    assert len(tiny) == 3 and all(i.startswith("tiny:") for i in tiny)
    row = "smollm2-135m-instruct"
    assert identify(ModelRef(source="package", name=row)) == f"package:{PACKAGED[row].sha256[:24]}"


def test_what_is_not_there():
    with pytest.raises(AssetError, match="does not exist"):
        of("/no/such/model")
    with pytest.raises(UnknownNameError):
        identify(ModelRef(source="package", name="smollm"))


# -- exactly what is read --------------------------------------------------------------------------


def indexed(saved, target):
    """The model with its weights named by an index."""
    names = safetensors.torch.load_file(saved / "model.safetensors").keys()
    body = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
    (saved / "model.safetensors.index.json").write_text(json.dumps(body))
    return saved


@pytest.mark.parametrize(
    "target", ["../other/model.safetensors", "sub/model.safetensors", "weights.bin", "/etc/passwd"]
)
def test_an_index_names_only_safetensors_of_the_directory(saved, target):
    (saved / "sub").mkdir()
    shutil.copytree(saved, saved.parent / "other")
    for place in (saved / "sub", saved.parent / "other"):
        (place / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    indexed(saved, target)
    for read in (of, lambda path: load_model(ModelRef(source="path", name=str(path)))):
        with pytest.raises(AssetError, match="an index of weights names a file that is not read"):
            read(saved)


def test_an_index_of_what_is_there_is_read(saved):
    (saved / "model.safetensors").rename(saved / "model-1.safetensors")
    (saved / "model-1.safetensors").rename(saved / "model.safetensors")
    of(indexed(saved, "model.safetensors"))
    with pytest.raises(AssetError, match="missing"):
        of(indexed(saved, "model-7.safetensors"))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_what_is_no_regular_file_is_not_read(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)  # opening it would wait for ever
    with pytest.raises(AssetError, match="not a regular file"):
        of(saved)


def test_a_replaced_file_of_the_same_size_and_time_is_another_model(saved):
    before, file = of(saved), saved / "model.safetensors"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=times)
    assert of(saved) != before


def test_an_adapter_is_another_one_with_another_base(saved, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(saved)})
    )
    before = of(adapter)
    config = saved / "config.json"
    config.write_text(config.read_text() + " ")
    assert of(adapter) != before


def test_adapters_that_name_one_another_end(tmp_path):
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        text = json.dumps({"base_model_name_or_path": str(tmp_path / base)})
        (tmp_path / name / "adapter_config.json").write_text(text)
    with pytest.raises(AssetError, match="name one another"):
        of(tmp_path / "a")
