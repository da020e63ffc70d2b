"""Every source of a model gives the same kind of thing; everything broken is told readably."""

import json
import shutil

import pytest
import torch

from titer.assets.checks import check_safetensors
from titer.assets.models import load_model
from titer.assets.saving import save_model, weights_digest
from titer.errors import AssetError, UnknownNameError
from titer.study.reference import ModelRef


def ref(text):
    return ModelRef.model_validate(str(text))


@pytest.fixture(scope="module")
def tiny():
    return load_model(ref("tiny:base"))


@pytest.fixture
def saved(tiny, tmp_path):
    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    return tmp_path / "model"


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_tensor(path, name):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


def test_saved_and_loaded_is_the_same_model(tiny, saved):
    again = load_model(ref(saved))
    assert again.provenance["sha256"] == tiny.provenance["sha256"]
    assert not again.model.training and again.model.dtype == torch.float32
    assert again.tokenizer.pad_token != again.tokenizer.eos_token
    chat = [{"role": "user", "content": "lumina bal"}]
    assert tiny.tokenizer.apply_chat_template(chat) == again.tokenizer.apply_chat_template(chat)
    assert not any(f.suffix == ".bin" for f in saved.iterdir())


def test_provenance_counts_parameters(tiny):
    assert int(tiny.provenance["parameters"]) == sum(p.numel() for p in tiny.model.parameters())
    assert tiny.provenance["identity"] == "tiny:base" and len(tiny.provenance["sha256"]) == 64


def test_saving_replaces_and_leaves_nothing_behind(tiny, saved):
    (saved / "stale.txt").write_text("old")
    save_model(tiny.model, tiny.tokenizer, saved)
    assert not (saved / "stale.txt").exists()
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_failed_save_keeps_the_old_directory(tiny, saved):
    class Broken:
        def save_pretrained(self, directory):
            raise OSError("disk full")

    before = sorted(p.name for p in saved.iterdir())
    with pytest.raises(OSError, match="disk full"):
        save_model(tiny.model, Broken(), saved)
    assert sorted(p.name for p in saved.iterdir()) == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_digest_sees_one_changed_weight_and_the_type():
    model = torch.nn.Linear(3, 2)
    before = weights_digest(model)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.weight[0, 0] += 1e-3
    changed = weights_digest(model)
    assert changed != before
    assert weights_digest(model.double()) != changed


def test_digest_does_not_depend_on_tying():
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    second.load_state_dict(first.state_dict())
    apart = torch.nn.ModuleList([first, second])
    tied = torch.nn.ModuleList([first, first])
    assert weights_digest(apart) == weights_digest(tied)


def test_missing_directory(tmp_path):
    with pytest.raises(AssetError, match="does not exist"):
        load_model(ref(tmp_path / "nowhere"))


def test_directory_without_config(tmp_path):
    with pytest.raises(AssetError, match=r"no config\.json"):
        load_model(ref(tmp_path))


def test_truncated_weights(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AssetError, match="truncated or damaged"):
        load_model(ref(saved))


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"\xff" * 64, b"\x08\0\0\0\0\0\0\0notjson!"])
def test_nonsense_instead_of_safetensors(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(AssetError, match="truncated or damaged"):
        check_safetensors(path)


def test_pickled_weights_are_refused(saved):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(AssetError, match="pickled"):
        load_model(ref(saved))


def test_config_cannot_point_at_pickled_weights(saved):
    (saved / "pytorch_model.bin").write_bytes(b"never opened")
    edit_json(saved / "config.json", transformers_weights="pytorch_model.bin")
    with pytest.raises(AssetError, match="pickled"):
        load_model(ref(saved))


def test_missing_tensor_is_not_filled_with_random_numbers(saved):
    drop_tensor(saved / "model.safetensors", "model.norm.weight")
    with pytest.raises(AssetError, match=r"missing from the files.*model\.norm\.weight"):
        load_model(ref(saved))


def test_no_chat_template(saved):
    (saved / "chat_template.jinja").unlink()
    with pytest.raises(AssetError, match="no chat template"):
        load_model(ref(saved))


def test_tokenizer_of_another_model(saved):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.add_tokens([f"extra{i}" for i in range(500)])
    tokenizer.save_pretrained(saved)
    with pytest.raises(AssetError, match="does not belong"):
        load_model(ref(saved))


def test_padding_falls_back_on_the_end_token_and_says_so(saved):
    edit_json(saved / "tokenizer_config.json", pad_token=None)
    text = (saved / "tokenizer.json").read_text().replace("<|pad|>", "<|unused|>")
    (saved / "tokenizer.json").write_text(text)
    again = load_model(ref(saved))
    assert again.tokenizer.pad_token == again.tokenizer.eos_token
    assert "end token" in again.provenance["padding"]


def test_adapter_is_merged_into_its_base(tiny, saved, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = load_model(ref(saved)).model
    wrapped = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    wrapped.peft_config["default"].base_model_name_or_path = str(saved)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = weights_digest(wrapped.merge_and_unload())
    merged = load_model(ref(tmp_path / "adapter"))
    assert merged.provenance["sha256"] == expected != tiny.provenance["sha256"]
    assert "merged" in merged.provenance["note"]


def test_adapter_without_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AssetError, match="no safetensors"):
        load_model(ref(tmp_path))


def test_adapter_and_model_in_one_directory(saved):
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(AssetError, match="both"):
        load_model(ref(saved))


def test_truncated_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\x05\0\0\0\0\0\0\0" * 2)
    for place in (
        tmp_path,
        tmp_path / "model.gguf",
    ):  # a directory that holds it, or the file itself
        with pytest.raises(AssetError, match="truncated or damaged"):
            load_model(ref(place))


def test_missing_gguf(tmp_path):
    with pytest.raises(AssetError, match="does not exist"):
        load_model(ref(tmp_path / "model.gguf"))


def test_two_gguf_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(AssetError, match=r"2 \.gguf files"):
        load_model(ref(tmp_path))


@pytest.mark.parametrize("name", ["smollm", "advbench"])
def test_package_rows_that_are_no_models(name):
    with pytest.raises(UnknownNameError):
        load_model(ref(f"package:{name}"))


def test_half_precision_on_request(saved):
    assert load_model(ref(saved), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_loading_is_silent(saved, capfd):
    load_model(ref(saved))
    assert capfd.readouterr() == ("", "")


@pytest.mark.real
@pytest.mark.timeout(600)
def test_smollm2_from_its_package(tmp_path):
    loaded = load_model(ref("package:smollm2-135m-instruct"))
    assert loaded.provenance["parameters"] == "134515008" and "Q4_1" in loaded.provenance["note"]
    assert loaded.tokenizer.pad_token != loaded.tokenizer.eos_token
    save_model(loaded.model, loaded.tokenizer, tmp_path / "copy")
    assert load_model(ref(tmp_path / "copy")).provenance["sha256"] == loaded.provenance["sha256"]
    shutil.rmtree(tmp_path / "copy")  # half a gigabyte
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = loaded.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    reply = loaded.model.generate(**ids, max_new_tokens=12, do_sample=False)[
        0, ids["input_ids"].shape[1] :
    ]
    assert "Paris" in loaded.tokenizer.decode(reply)
