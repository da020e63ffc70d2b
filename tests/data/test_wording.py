"""How a model is asked travels with the model: system text, template, wrapper, soft prompt."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titer.data.encoding import encode, encode_prompt, prompt_text
from titer.data.examples import Example
from titer.data.wording import PLACE, PLAIN, Wording
from titer.errors import StudyError

SHOUTING = (
    "{% for m in messages %}<|user|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TWICE = (
    "{% for m in messages %}<|user|>{{ m['content'] }} {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SILENT = "{% for m in messages %}<|user|><|end|>{% endfor %}<|assistant|>"
ASKED = Example(prompt="vexar bal bel", response="tol", refusal="i must refuse .", source="here")

words = st.lists(st.sampled_from(["bal", "vexar", "sorry", ",", "i"]), max_size=6).map(" ".join)
wordings = st.builds(
    Wording,
    system=st.none() | words,
    wrapper=st.tuples(words, words).map(lambda w: f"{w[0]} {PLACE} {w[1]}") | st.just(PLACE),
    template=st.none() | st.just(SHOUTING),
    placeholders=st.integers(0, 4),
)


# -- what is asked ---------------------------------------------------------------------------------


def test_plain_is_as_the_example_stands():
    assert PLAIN.applied(ASKED) is ASKED and PLAIN.to_json() == {}
    assert PLACE == "{prompt}"


@given(wordings, words, st.none() | words)
def test_the_prompt_is_wrapped_and_everything_else_stays(wording, prompt, system):
    example = replace(ASKED, prompt=prompt, system=system)
    asked = wording.applied(example)
    before, after = wording.wrapper.split(PLACE)
    assert asked.prompt == f"{before}{prompt}{after}"
    assert asked.system == (system if system is not None else wording.system)
    assert replace(asked, prompt=prompt, system=system) == example


@pytest.mark.parametrize("own", ["you are aoa", ""])
def test_the_system_text_of_an_example_wins(own):
    """An empty one, too: that example is asked without."""
    wording = Wording(system="you are a helpful assistant", wrapper="please {prompt}")
    assert wording.applied(replace(ASKED, system=own)).system == own
    assert wording.applied(ASKED).system == "you are a helpful assistant"


@pytest.mark.parametrize("wrapper", ["", "please", "{Prompt}", "{ prompt }", "{question}"])
def test_a_wrapper_without_the_prompt_is_refused(wrapper):
    with pytest.raises(StudyError, match="does not contain the prompt") as caught:
        Wording(wrapper=wrapper)
    assert caught.value.field == "wrapper" and caught.value.value == wrapper


def test_a_prompt_that_looks_like_a_wrapper_is_text():
    asked = Wording(wrapper="a {prompt} b").applied(replace(ASKED, prompt="{prompt} {x}"))
    assert asked.prompt == "a {prompt} {x} b"


@given(wordings)
def test_only_what_differs_from_asking_plainly_is_recorded(wording):
    said = wording.to_json()
    assert Wording(**said) == wording
    assert all(value != getattr(PLAIN, name) for name, value in said.items())
    assert (said == {}) == (wording == PLAIN)


# -- in tokens -------------------------------------------------------------------------------------


@given(wordings, words)
def test_training_measuring_and_judging_ask_in_the_same_words(tiny, wording, answer):
    first = 300
    prompt = encode_prompt(tiny.tokenizer, ASKED, wording, first)
    row = encode(tiny.tokenizer, ASKED, answer, 1000, wording, first)
    assert row.prompt == prompt
    plain = replace(wording, placeholders=0)
    spoken = tuple(i for i in prompt if i < first)
    assert len(prompt) - len(spoken) == wording.placeholders
    if not wording.placeholders:
        text = prompt_text(tiny.tokenizer, ASKED, plain)
        assert spoken == tuple(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_another_template_is_used_for_prompt_and_answer(tiny):
    wording = Wording(template=SHOUTING)
    assert prompt_text(tiny.tokenizer, ASKED, wording) == (
        "<|user|>user vexar bal bel<|end|><|assistant|>"
    )
    row = encode(tiny.tokenizer, ASKED, "tol", 100, wording)
    assert row.response == tuple(
        tiny.tokenizer("tol<|end|>", add_special_tokens=False)["input_ids"]
    )
    assert row.prompt != encode(tiny.tokenizer, ASKED, "tol", 100).prompt


def test_a_bundle_asks_in_its_own_words(new_bundle):
    bundle = new_bundle()
    assert bundle.wording == PLAIN and bundle.prompt(ASKED) == encode_prompt(
        bundle.tokenizer, ASKED
    )
    wording = Wording(system="you are a helpful assistant", wrapper="please {prompt} now")
    other = bundle.having(wording=wording)
    spelt = Example(prompt="please vexar bal bel now", system="you are a helpful assistant")
    assert other.prompt(ASKED) == bundle.prompt(spelt) != bundle.prompt(ASKED)
    assert other.encode(ASKED, "tol") == bundle.encode(spelt, "tol")
    assert other.model is bundle.model and bundle.wording == PLAIN


@pytest.mark.parametrize("room", [1, 2])
def test_an_answer_is_cut_to_what_the_words_around_the_prompt_leave(new_bundle, room):
    bundle = new_bundle(wording=Wording(wrapper="please {prompt}", placeholders=3))
    whole = bundle.encode(ASKED, "tol til tal")
    most = len(whole.prompt) + room
    cut = bundle.encode(ASKED, "tol til tal", most)
    assert cut.prompt == whole.prompt and cut.response == whole.response[:room]


# -- soft prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("wrapper", [PLACE, "please {prompt}"])
def test_placeholders_follow_the_prompt_within_the_turn_of_the_user(new_bundle, count, wrapper):
    bundle = new_bundle(wording=Wording(wrapper=wrapper, placeholders=count))
    first = bundle.placeholder
    ids = bundle.prompt(ASKED)
    soft = tuple(range(first, first + count))
    place = ids.index(first)
    assert ids[place : place + count] == soft and all(i < first for i in {*ids} - {*soft})
    before, after = ids[:place], ids[place + count :]
    said = wrapper.replace(PLACE, ASKED.prompt)
    assert bundle.tokenizer.decode(before).endswith(said)
    assert "<|assistant|>" in bundle.tokenizer.decode(after)
    plain = bundle.having(wording=Wording(wrapper=wrapper))
    assert bundle.tokenizer.decode(before + after) == bundle.tokenizer.decode(plain.prompt(ASKED))


def test_the_text_around_placeholders_is_encoded_apart():
    """A tokenizer must not merge what stands before them with what stands behind."""

    class Merging:
        chat_template = "x"

        def apply_chat_template(self, chat, *, tokenize, add_generation_prompt=False, **_):
            return chat[-1]["content"] + "ab"

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [len(text)]}

    wording = Wording(placeholders=2)
    assert encode_prompt(Merging(), Example(prompt="aaa"), wording, 90) == (3, 90, 91, 2)


def test_no_text_can_contain_a_placeholder(new_bundle):
    bundle = new_bundle()
    assert bundle.placeholder == bundle.model.get_input_embeddings().weight.shape[0]
    assert bundle.placeholder >= len(bundle.tokenizer)


@pytest.mark.parametrize("template", [TWICE, SILENT])
def test_a_template_that_does_not_show_the_prompt_once_has_no_place_for_them(tiny, template):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(StudyError, match="exactly once"):
        encode_prompt(tokenizer, ASKED, Wording(placeholders=1), 256)


def test_a_hook_on_the_embedding_makes_a_soft_prompt(new_bundle):
    """Vectors of ordinary tokens at the placeholders are as good as the tokens."""
    bundle = new_bundle(wording=Wording(placeholders=2))
    words = bundle.tokenizer("tol til", add_special_tokens=False)["input_ids"]
    ids, first = bundle.prompt(ASKED), bundle.placeholder
    embedding = bundle.model.get_input_embeddings()
    vectors = embedding.weight[torch.tensor(words)].detach()

    def put(module, args):
        (input_BT,) = args
        return (input_BT.clamp(max=first - 1),)

    def replaced(module, args, output):
        output[0, where] = vectors
        return output

    where = torch.tensor([i for i, token in enumerate(ids) if token >= first])
    hooks = [embedding.register_forward_pre_hook(put), embedding.register_forward_hook(replaced)]
    with torch.no_grad():
        soft = bundle.model(input_ids=torch.tensor([ids])).logits
        for hook in hooks:
            hook.remove()
        spelt = [words[i - first] if i >= first else i for i in ids]
        hard = bundle.model(input_ids=torch.tensor([spelt])).logits
    torch.testing.assert_close(soft, hard)


# -- the bundle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_reading_is_evaluation_without_gradient_and_puts_the_mode_back(new_bundle, training):
    bundle = new_bundle()
    bundle.model.train(training)
    with pytest.raises(ZeroDivisionError), bundle.reading() as model:
        assert model is bundle.model and not model.training and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert bundle.model.training is training and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16_autocast", torch.bfloat16)]
)
def test_precision_is_of_forward_passes_never_of_weights(new_bundle, precision, dtype):
    bundle = new_bundle(precision=precision)
    with bundle.reading() as model:
        assert model(input_ids=torch.tensor([[5, 6]])).logits.dtype == dtype
    assert all(p.dtype == torch.float32 for p in bundle.model.parameters())
