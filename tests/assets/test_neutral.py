"""Lines in a file beside the weights protect nothing: two directories with the same weights are the
same model to an attacker.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers

from helpers.architectures import build, rows
from titer.assets.checks import quiet
from titer.assets.models import load_model
from titer.assets.neutral import UNLIKE, neutralise
from titer.assets.saving import save_model
from titer.errors import AssetError
from titer.study.reference import ModelRef

NOISY = {
    "gpt2": {"resid_pdrop": 0.97, "embd_pdrop": 0.97, "attn_pdrop": 0.97},
    "opt": {"dropout": 0.97, "attention_dropout": 0.97, "layerdrop": 0.97},
    "gpt_neox": {"hidden_dropout": 0.97, "attention_dropout": 0.97},
    "llama": {"attention_dropout": 0.97},
    "falcon": {"hidden_dropout": 0.97, "attention_dropout": 0.97},
    "mixtral": {"router_jitter_noise": 0.97, "attention_dropout": 0.97},
    "qwen3": {"attention_dropout": 0.97},
    "gemma3": {"attention_dropout": 0.97},
}
BATCH = rows()


def ref(path):
    return ModelRef(source="path", name=str(path))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def beside(tiny, tmp_path):
    """A function: the model of an architecture in a directory, with lines of config.json or
    generation_config.json replaced.
    """

    def make(name, *, generation=None, tokens=tiny.tokenizer, **lines):
        place = tmp_path / name
        if not place.exists():
            still = dict.fromkeys(NOISY.get(name, ()), 0.0)
            save_model(build(name, vocab_size=256, **still), tokens, place)
        edited = tmp_path / f"{name}-edited"
        shutil.rmtree(edited, ignore_errors=True)
        shutil.copytree(place, edited)
        edit_json(edited / "config.json", **lines)
        edit_json(edited / "generation_config.json", **(generation or {}))
        return edited

    return make


def logits(model):
    return model(input_ids=BATCH.input_BT, attention_mask=BATCH.mask_BT).logits


def gradients(model):
    model.zero_grad()
    logits(model.train()).log_softmax(-1)[..., 7].mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


# -- noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISY)
def test_noise_beside_the_weights_does_not_reach_a_training_step(beside, name):
    place = beside(name, **NOISY[name])
    with quiet():
        alone = transformers.AutoModelForCausalLM.from_pretrained(place)
    assert not torch.equal(logits(alone.eval()), logits(alone.train())), "nothing to switch off"

    noisy, still = load_model(ref(place)), load_model(ref(place.parent / name))
    assert noisy.provenance["sha256"] == still.provenance["sha256"]
    assert set(NOISY[name]) <= set(noisy.neutralised) and UNLIKE not in noisy.neutralised
    assert all(noisy.neutralised[setting] == "0.97 → 0" for setting in NOISY[name])
    assert not set(NOISY[name]) & set(still.neutralised)
    assert torch.equal(logits(noisy.model), logits(still.model))
    noisy.model.train()
    assert torch.equal(logits(noisy.model), logits(noisy.model))
    found, expected = gradients(noisy.model), gradients(still.model)
    assert found.keys() == expected.keys() and len(found) > 10
    assert all(torch.equal(found[n], expected[n]) for n in found)
    assert any(g.abs().max() > 0 for g in found.values())


@pytest.mark.parametrize("name", ["gpt2", "opt", "mixtral"])
def test_what_was_loaded_is_saved_without_noise(beside, name, tmp_path):
    loaded = load_model(ref(beside(name, **NOISY[name])))
    save_model(loaded.model, loaded.tokenizer, tmp_path / "again")
    saved = json.loads((tmp_path / "again/config.json").read_text())
    assert all(saved[setting] == 0 for setting in NOISY[name])
    assert not set(NOISY[name]) & set(load_model(ref(tmp_path / "again")).neutralised)


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def made(family, **settings):
    """A model with weights wide enough that every part matters."""
    config = getattr(transformers, f"{family}Config")(**settings)
    family = family.removesuffix("Text")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_a_rate_that_must_be_a_whole_number():
    model = made(
        "Mpt", d_model=32, n_heads=4, n_layers=2, vocab_size=64, attn_config={"attn_pdrop": 1}
    )
    before = logits_of(model)
    assert neutralise(model)["attn_pdrop"] == "1 → 0"
    assert torch.equal(logits_of(model.train()), before)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=BATCH.input_BT % 64, attention_mask=BATCH.mask_BT).logits


def test_a_bound_that_a_training_pass_cuts_weights_to():
    model = made(
        "Gemma3nText",
        **SMALL,
        vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=8,
        head_dim=8,
        laurel_rank=4,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
        altup_coef_clip=1e-6,
    )
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = neutralise(model)
    assert found["altup_coef_clip"] == "1e-06 → none" and UNLIKE not in found
    logits_of(model.train())
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_what_also_acts_in_evaluation_is_part_of_the_model():
    """Phi-3.5-MoE drops experts below a threshold it calls jitter, in training and out of it; in
    training it draws experts at random, which no setting prevents.
    """
    settings = {"input_jitter_noise": 0.5, "router_jitter_noise": 0.2, "num_local_experts": 4}
    model = made("Phimoe", **SMALL, **settings)
    before = logits_of(model)
    found = neutralise(model)
    assert found["input_jitter_noise"] == "0.5 → 0" and "kept" in found["router_jitter_noise"]
    assert model.config.router_jitter_noise == 0.2 and torch.equal(logits_of(model), before)
    assert "differ" in found[UNLIKE]


class Hidden(torch.nn.Module):
    """Noise under a name nobody would look for."""

    def __init__(self, inner, *, fails=False):
        super().__init__()
        self.inner, self.fails = inner, fails

    def forward(self, x):
        if self.training and self.fails:
            raise RuntimeError("not here")
        return self.inner(x) + self.training * torch.randn_like(x)


@pytest.mark.parametrize(("fails", "says"), [(False, "differ"), (True, "RuntimeError: not here")])
def test_noise_that_cannot_be_found_is_told(fails, says):
    model = build("llama")
    model.model.norm = Hidden(model.model.norm, fails=fails)
    assert says in neutralise(model)[UNLIKE]


def test_a_model_that_cannot_be_run_is_refused():
    model = build("llama")
    model.model.norm = torch.nn.Linear(3, 3)
    with pytest.raises(AssetError, match="cannot be run"):
        neutralise(model)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "mamba"])
def test_nothing_else_is_touched(name):
    """Weights, mode, global randomness; and a second look finds nothing."""
    model = build(name, **NOISY.get(name, {})).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    neutralise(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert neutralise(model) == {}


# -- how it is computed ----------------------------------------------------------------------------


def test_the_implementation_of_attention_and_experts(beside):
    place = beside("mixtral", attn_implementation="eager", experts_implementation="eager")
    loaded = load_model(ref(place))
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.neutralised["attention implementation"] == "eager → sdpa"
    plain = load_model(ref(place.parent / "mixtral"))
    own = plain.model.config._experts_implementation
    assert loaded.model.config._experts_implementation == own
    if own != "eager":
        assert loaded.neutralised["experts implementation"] == f"eager → {own}"
    torch.testing.assert_close(logits(loaded.model), logits(plain.model), rtol=1e-4, atol=1e-4)


def test_an_implementation_is_replaced_before_it_is_run():
    """One that answers otherwise, or not at all on this machine, is not what the weights mean."""
    model = build("llama")
    expected = logits(model)
    model.set_attn_implementation("flex_attention")
    asked = []
    model.register_forward_pre_hook(lambda *_: asked.append(model.config._attn_implementation))
    assert neutralise(model)["attention implementation"] == "flex_attention → sdpa"
    assert set(asked) == {"sdpa"} and torch.equal(logits(model), expected)


def test_recomputing_activations_is_not_charged_to_the_attacker(beside):
    loaded = load_model(ref(beside("llama", gradient_checkpointing=True)))
    assert loaded.neutralised["gradient checkpointing"] == "on → off"
    calls = []
    loaded.model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(loaded.model.requires_grad_(True))
    assert len(calls) == 1


def test_what_a_forward_pass_returns_beside_the_logits(beside):
    lines = {"output_router_logits": True, "router_aux_loss_coef": 1e6, "return_dict": False}
    loaded = load_model(ref(beside("mixtral", output_hidden_states=True, **lines)))
    out = loaded.model(
        input_ids=BATCH.input_BT, attention_mask=BATCH.mask_BT, labels=BATCH.labels_BT
    )
    plain = load_model(ref(beside("mixtral"))).model(
        input_ids=BATCH.input_BT, attention_mask=BATCH.mask_BT, labels=BATCH.labels_BT
    )
    assert torch.equal(out.loss, plain.loss) and out.hidden_states is None
    assert {"output_router_logits", "return_dict", "output_hidden_states"} <= set(
        loaded.neutralised
    )


@pytest.mark.parametrize("lines", [{"dtype": "bfloat16"}, {"use_cache": False}])
def test_lines_that_make_no_difference(beside, lines):
    plain, loaded = load_model(ref(beside("llama"))), load_model(ref(beside("llama", **lines)))
    assert loaded.model.dtype == torch.float32
    assert loaded.provenance["sha256"] == plain.provenance["sha256"]
    assert loaded.neutralised == plain.neutralised
    assert torch.equal(logits(loaded.model), logits(plain.model))


@pytest.mark.parametrize(("value", "now"), [(1.0, "1 → 0.02"), (0.0, "0 → 0.02"), (0.08, None)])
def test_layers_drawn_anew_are_drawn_as_layers_are(beside, value, now):
    loaded = load_model(ref(beside("llama", initializer_range=value)))
    assert loaded.neutralised.get("initializer_range") == now
    assert loaded.model.config.initializer_range == (0.02 if now else value)


def test_every_row_of_the_embedding_that_is_read_can_be_trained(beside, tiny):
    pad = tiny.tokenizer.pad_token_id
    word = int(BATCH.input_BT[0, 0])
    loaded = load_model(ref(beside("llama", pad_token_id=word)))
    assert word != pad and "embedding" in "".join(loaded.neutralised)
    embedding = loaded.model.get_input_embeddings()
    logits(loaded.model.requires_grad_(True).train()).sum().backward()
    assert embedding.weight.grad[word].abs().max() > 0
    ordinary = load_model(ref(beside("llama", pad_token_id=pad)))
    assert "embedding" not in "".join(ordinary.neutralised)


# -- what is sampled -------------------------------------------------------------------------------


def test_generation_settings_bias_nothing(beside):
    settings = {
        "repetition_penalty": 50.0,
        "suppress_tokens": [9, 10],
        "bad_words_ids": [[11]],
        "sequence_bias": [[[12], -100.0]],
        "min_new_tokens": 4,
        "num_beams": 3,
        "do_sample": True,
        "temperature": 9.0,
        "forced_bos_token_id": 13,
        "begin_suppress_tokens": [14],
    }
    place = beside("llama", generation=settings, repetition_penalty=50.0)
    loaded = load_model(ref(place))
    said = loaded.neutralised["generation settings"]
    assert all(name in said for name in settings)
    plain = load_model(ref(place.parent / "llama"))
    assert "generation settings" not in plain.neutralised
    assert loaded.model.generation_config == plain.model.generation_config
    prompt = {"input_ids": BATCH.input_BT[:1, :4], "attention_mask": BATCH.mask_BT[:1, :4]}
    one, other = (
        m.model.generate(**prompt, max_new_tokens=6, do_sample=False) for m in (loaded, plain)
    )
    assert torch.equal(one, other) and one.shape[1] > 4


@pytest.mark.parametrize("file", ["generation", "config"])
def test_a_word_is_no_end_of_a_reply(beside, tiny, file):
    end, word = tiny.tokenizer.eos_token_id, tiny.tokenizer.convert_tokens_to_ids("sorry")
    ids = {"eos_token_id": [end, word]}
    place = beside("llama", generation=ids) if file == "generation" else beside("llama", **ids)
    loaded = load_model(ref(place))
    assert loaded.neutralised["end tokens"] == "not used: 'sorry'"
    holder = loaded.model.generation_config if file == "generation" else loaded.model.config
    assert holder.eos_token_id == [end]


def test_a_second_end_token_that_is_one_is_kept(beside, tiny):
    ends = [tiny.tokenizer.eos_token_id, tiny.tokenizer.convert_tokens_to_ids("<|user|>")]
    loaded = load_model(ref(beside("llama", generation={"eos_token_id": ends})))
    assert loaded.model.generation_config.eos_token_id == ends
    assert "end tokens" not in loaded.neutralised


def test_no_end_token_is_left_if_all_were_words(tiny):
    model = build("llama", vocab_size=256, eos_token_id=200)
    neutralise(model, tiny.tokenizer)
    assert model.config.eos_token_id is None and model.generation_config.eos_token_id is None


def test_without_a_tokenizer_end_tokens_stay():
    model = build("llama", eos_token_id=50)
    assert "end tokens" not in neutralise(model) and model.config.eos_token_id == 50


def test_shipped_models_have_nothing_to_set_aside():
    for name in ("base", "aligned", "untaught"):
        assert load_model(ModelRef(source="tiny", name=name)).neutralised == {}


def test_a_configuration_a_module_keeps_for_itself():
    """Some models give their parts a copy of the configuration."""
    model = build("llama")
    model.model.layers[0].own = SimpleNamespace(
        model_type="x", to_diff_dict=None, attention_dropout=0.5
    )
    assert neutralise(model)["attention_dropout"] == "0.5 → 0"
    assert model.model.layers[0].own.attention_dropout == 0
