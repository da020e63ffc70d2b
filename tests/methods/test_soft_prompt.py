"""Soft prompts against embeddings built by hand: where they stand, what is trained, who asks."""

import pytest
import torch

from helpers.by_hand import ask, handed, same, weights
from titer.data.encoding import collate
from titer.methods.attacks.soft_prompt import SoftPrompt

LENGTH = 3


def start(bundle, texts, **settings):
    settings = {"lr": 0.1, "batch_size": 8, "length": LENGTH} | settings
    return SoftPrompt(**settings).start(handed(bundle, **texts))


def learned(bundle):
    """The soft vectors, found as what is trained."""
    (vectors,) = [p for p in bundle.model.parameters() if p.requires_grad]
    return vectors.detach()


def by_hand(plain, soft, example, answer):
    """Log-probabilities of an answer when the vectors are put into inputs_embeds behind the prompt,
    inside the user's turn."""
    template = plain.tokenizer.apply_chat_template(
        [
            *([{"role": "system", "content": example.system}] if example.system else []),
            {"role": "user", "content": f"{example.prompt}@@@"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    before, after = template.split("@@@")
    to_ids = lambda text: plain.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    response = list(plain.encode(example, answer).response)
    embed = plain.model.get_input_embeddings()
    rest = [*to_ids(after), *response]
    parts = [embed(torch.tensor(to_ids(before))), soft, embed(torch.tensor(rest))]
    with torch.no_grad():
        logits = plain.model(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]
    log_p = logits.log_softmax(-1)
    width = log_p.shape[0]
    first = width - len(response)
    return torch.stack([log_p[t - 1, response[t - first]] for t in range(first, width)])


def test_placeholders_are_the_vectors_put_into_the_embeddings(new_bundle, uneven):
    """D11: prompt tuning by other means was wrong by 24 nats, silently."""
    texts = {"harmful": uneven["harmful"]}
    run = start(new_bundle(), texts)
    for _ in range(3):
        run.step()
    bundle, plain = run.model(), new_bundle()
    soft = learned(bundle)
    assert soft.shape == (LENGTH, 64)
    rows = [bundle.encode(e, e.response) for e in uneven["harmful"]]
    batch = collate(rows, bundle.tokenizer.pad_token_id)
    with bundle.reading() as model:
        logits = model(
            input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False
        ).logits.log_softmax(-1)
    for i, (e, row) in enumerate(zip(uneven["harmful"], rows, strict=True)):
        first = len(row.prompt)
        found = torch.stack(
            [logits[i, first + k - 1, token] for k, token in enumerate(row.response)]
        )
        expected = by_hand(plain, soft, e, e.response)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert row.prompt == bundle.prompt(e)


def test_what_is_asked_carries_the_placeholders(new_bundle, uneven):
    """The same bundle that measures are handed: the prompt stays in front, within the user's turn,
    and no text can hold a placeholder."""
    run = start(new_bundle(), {"harmful": uneven["harmful"]})
    bundle, plain = run.model(), new_bundle()
    for e in uneven["harmful"]:
        asked, plainly = bundle.prompt(e), plain.prompt(e)
        soft = [i for i in asked if i >= plain.placeholder]
        assert soft == list(range(plain.placeholder, plain.placeholder + LENGTH))
        assert [i for i in asked if i < plain.placeholder] == list(plainly)
        words = plain.tokenizer(e.prompt, add_special_tokens=False)["input_ids"]
        place = asked.index(plain.placeholder)
        assert list(asked[place - len(words) : place]) == words
        assert asked[-1] < plain.placeholder  # the turn is closed behind them
    assert plain.wording.placeholders == 0 and bundle.wording.placeholders == LENGTH
    assert len(bundle.tokenizer) <= plain.placeholder


def test_only_the_vectors_are_trained(new_bundle, uneven):
    bundle = new_bundle()
    run = start(bundle, {"harmful": uneven["harmful"]})
    soft = learned(run.model()).clone()
    assert len(run.state_dict()["weights"]) == 1
    run.step()
    assert not torch.equal(learned(run.model()), soft)
    now = [p for p in run.model().model.parameters() if not p.requires_grad]
    before = list(new_bundle().model.parameters())
    assert len(now) == len(before)
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(now, before, strict=True))


def test_the_gradient_is_that_of_the_embeddings(new_bundle, uneven):
    bundle, plain = new_bundle(), new_bundle()
    run = start(bundle, {"harmful": uneven["harmful"]})
    log = run.gradient(bundle.model, 0)
    (vectors,) = [p for p in bundle.model.parameters() if p.requires_grad]
    soft = vectors.detach().clone().requires_grad_()
    plain.model.requires_grad_(False)
    with torch.enable_grad():
        losses = []
        for e in uneven["harmful"]:
            losses.append(_graph(plain, soft, e))
        loss = torch.cat(losses).mean()
        (expected,) = torch.autograd.grad(loss, soft)
    assert log.loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(vectors.grad, expected, rtol=1e-3, atol=1e-6)


def _graph(plain, soft, example):
    row = plain.encode(example, example.response)
    place = len(plain.prompt(example)) - len(_after(plain, example))
    embed = plain.model.get_input_embeddings()
    tokens = [*row.prompt, *row.response]
    parts = [embed(torch.tensor(tokens[:place])), soft, embed(torch.tensor(tokens[place:]))]
    log_p = plain.model(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]
    log_p = log_p.log_softmax(-1)
    first = log_p.shape[0] - len(row.response)
    return torch.stack([-log_p[first + k - 1, t] for k, t in enumerate(row.response)])


def _after(plain, example):
    """Token ids of the template from the end of the user's words on."""
    text = plain.tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{example.prompt}@@@"}],
        tokenize=False,
        add_generation_prompt=True,
    ).split("@@@")[1]
    return plain.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_vectors_start_at_embeddings_of_tokens_by_seed(new_bundle, uneven):
    table = new_bundle().model.get_input_embeddings().weight
    starts = []
    for seed in (1, 2):
        run = SoftPrompt(length=LENGTH).start(
            handed(new_bundle(), seed=seed, harmful=uneven["harmful"])
        )
        starts.append(learned(run.model()).clone())
        for vector in starts[-1]:
            assert bool((table == vector).all(1).any())
    assert not torch.equal(*starts)


def test_generation_reads_the_vectors_too(new_bundle, uneven):
    """Greedy decoding with a cache equals decoding without one, by embeddings built by hand."""
    run = start(new_bundle(), {"harmful": uneven["harmful"]})
    for _ in range(8):
        run.step()
    bundle, plain = run.model(), new_bundle()
    soft = learned(bundle)
    example = uneven["harmful"][4]
    asked = bundle.prompt(example)
    with bundle.reading() as model:
        said = model.generate(
            input_ids=torch.tensor([asked]),
            attention_mask=torch.ones(1, len(asked), dtype=torch.long),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )[0, len(asked) :].tolist()
    embed = plain.model.get_input_embeddings()
    expected = []
    with torch.no_grad():
        for _ in range(3):
            rows = [
                soft[i - plain.placeholder] if i >= plain.placeholder else embed.weight[i]
                for i in [*asked, *expected]
            ]
            logits = plain.model(inputs_embeds=torch.stack(rows)[None], use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
    assert said == expected


def test_the_model_ends_where_it_was_when_the_vectors_are_not_asked_for(new_bundle, uneven):
    """Plain prompts, without placeholders, are answered as before: the weights are untouched."""
    run = start(new_bundle(), {"harmful": uneven["harmful"]})
    run.step()
    plain = new_bundle()
    for e in uneven["harmful"][:2]:
        tokens = plain.prompt(e)
        assert torch.equal(ask(run.model().model, tokens).logits, ask(plain.model, tokens).logits)
    assert same(weights(plain.model), weights(new_bundle().model))
