"""A model's identity is its content: a copy is the same model, and a changed one is another."""

import shutil

import pytest

from titer.assets.identity import identify
from titer.assets.models import load_model
from titer.assets.packages import PACKAGED
from titer.assets.saving import save_model
from titer.errors import AssetError, UnknownNameError
from titer.study.reference import ModelRef


@pytest.fixture(autouse=True)
def forget():
    identify.cache_clear()
    yield
    identify.cache_clear()


@pytest.fixture
def saved(tmp_path):
    loaded = load_model(ModelRef(source="tiny", name="base"))
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    return tmp_path / "model"


def of(path):
    identify.cache_clear()
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
