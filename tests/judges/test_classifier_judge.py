"""The judge that is a classifier against calling its model by hand, one text at a time."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from titer.errors import AssetError, MeasureError, StudyError
from titer.judges.classifier import ClassifierJudge, _loaded

WORDS = [
    "what",
    "is",
    "dol",
    "?",
    "til",
    "kel",
    "bil",
    "del",
    "tal",
    "dal",
    "please",
    "no",
    "i",
    "cannot",
    "bake",
    "bread",
]
PAIRS = [
    ("what is dol ?", "dol is til"),
    ("please bake bread", "no i cannot"),
    ("what is til ? please " * 3, "til is til is til is kel bil del"),
    ("dol", ""),
    ("", "til til"),
    ("{reply}", "bake {prompt}"),
]


def _tokenizer(special):
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_input_names": ["input_ids"]}
    if special:
        named |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        named["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


ALIKE = {
    "vocab_size": len(WORDS) + 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """kind → directory of a random classifier with its tokenizer."""
    root = tmp_path_factory.mktemp("classifiers")
    labels = {"id2label": {0: "harmless", 1: "harmful", 2: "odd"}}
    made = {
        "bert": (BertForSequenceClassification, BertConfig(**ALIKE, num_labels=3, **labels)),
        "llama": (LlamaForSequenceClassification, LlamaConfig(**ALIKE, num_labels=2)),
        "one": (BertForSequenceClassification, BertConfig(**ALIKE, num_labels=1)),
        "many": (
            BertForSequenceClassification,
            BertConfig(**ALIKE, num_labels=3, problem_type="multi_label_classification"),
        ),
        "language": (LlamaForCausalLM, LlamaConfig(**ALIKE)),
    }
    for kind, (cls, config) in made.items():
        torch.manual_seed(4)
        cls(config).save_pretrained(root / kind)
        _tokenizer(special=cls is BertForSequenceClassification).save_pretrained(root / kind)
    return root


@pytest.fixture(autouse=True)
def nothing_loaded():
    yield
    _loaded.cache_clear()


def by_hand(cls, directory, pairs, template=None):
    """Logits of each text alone, fp32, in float64 afterwards."""
    model = cls.from_pretrained(directory).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    rows = []
    for prompt, reply in pairs:
        if template is None:
            batch = tokenizer(prompt, reply, return_tensors="pt")
        else:
            head, middle, tail = template  # around prompt and reply
            batch = tokenizer(head + prompt + middle + reply + tail, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**batch).logits[0].double())
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_bert_with_two_segments(saved, batch_size):
    judge = ClassifierJudge(
        model=str(saved / "bert"), harmful="harmful", batch_size=batch_size, max_length=64
    )
    expected = by_hand(BertForSequenceClassification, saved / "bert", PAIRS).softmax(-1)[:, 1]
    found = judge.judge(PAIRS)
    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    assert max(found) - min(found) > 0.1  # the texts matter
    swapped = judge.judge([(r, p) for p, r in PAIRS])
    assert max(abs(a - b) for a, b in zip(found, swapped, strict=True)) > 0.01  # and the segments


@pytest.mark.parametrize("batch_size", [1, 4])
def test_llama_with_one_text(saved, batch_size):
    judge = ClassifierJudge(
        model=str(saved / "llama"),
        harmful=0,
        template="what {prompt} is {reply} ?",
        batch_size=batch_size,
        max_length=64,
    )
    logits = by_hand(
        LlamaForSequenceClassification, saved / "llama", PAIRS, ("what ", " is ", " ?")
    )
    assert judge.judge(PAIRS) == pytest.approx(logits.softmax(-1)[:, 0].tolist(), abs=1e-6)


def test_other_heads(saved):
    """One output: its sigmoid. Independent labels: theirs."""
    for kind, label in (("one", 0), ("many", 2)):
        judge = ClassifierJudge(model=str(saved / kind), harmful=label, max_length=64)
        logits = by_hand(BertForSequenceClassification, saved / kind, PAIRS)
        expected = logits.sigmoid()[:, label].tolist()
        assert judge.judge(PAIRS) == pytest.approx(expected, abs=1e-6)


def test_labels_by_name_and_index(saved):
    by_name, by_index, other = (
        ClassifierJudge(model=str(saved / "bert"), harmful=label, max_length=64).judge(PAIRS[:2])
        for label in ("harmful", 1, "odd")
    )
    assert by_name == by_index != other
    with pytest.raises(MeasureError, match=r"no such label.*0 \(harmless\), 1 \(harmful\)"):
        ClassifierJudge(model=str(saved / "bert"), harmful="evil", max_length=64).judge(PAIRS)


# -- long texts ------------------------------------------------------------------------------------


def test_a_prompt_is_cut_from_its_beginning(saved):
    """Against the tokenizer's own truncation of the first segment from the left."""
    judge = ClassifierJudge(
        model=str(saved / "bert"), harmful=1, max_length=12, overflow="cut_prompt"
    )
    long = [(" ".join(WORDS[: 3 + i]), "no i cannot bake") for i in range(12)]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(saved / "bert", truncation_side="left")
    model = BertForSequenceClassification.from_pretrained(saved / "bert").eval()
    expected = []
    for pair in long:
        batch = tokenizer(*pair, truncation="only_first", max_length=12, return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**batch).logits[0].softmax(-1)[1].item())
    assert judge.judge(long) == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 3


def test_what_does_not_fit_is_refused(saved):
    long = [("what is dol ? " * 4, "til")]
    refusing = ClassifierJudge(model=str(saved / "bert"), harmful=1, max_length=10)
    with pytest.raises(MeasureError, match=r"max_length = 10.*cut_prompt"):
        refusing.judge(long)
    cutting = refusing.model_copy(update={"overflow": "cut_prompt"})
    assert cutting.judge(long)[0] is not None
    with pytest.raises(MeasureError, match="a reply alone is too long"):
        cutting.judge([("what", "til " * 20)])
    with pytest.raises(MeasureError, match=r"max_length = 65.*at most 64"):
        ClassifierJudge(model=str(saved / "bert"), harmful=1, max_length=65).judge(long)


# -- loading ---------------------------------------------------------------------------------------


def test_a_language_model_is_no_classifier(saved):
    """transformers would give it a head of random numbers."""
    judge = ClassifierJudge(model=str(saved / "language"), harmful=0, max_length=64)
    with pytest.raises(AssetError, match=r"weights of the judge are missing.*score\.weight"):
        judge.judge(PAIRS)


def test_pickled_weights_are_refused(saved, tmp_path):
    copy = shutil.copytree(saved / "bert", tmp_path / "pickled")
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(AssetError, match="pickled"):
        ClassifierJudge(model=str(copy), harmful=1, max_length=64).judge(PAIRS)


def test_a_model_whose_numbers_are_not_finite_judges_nothing(saved, tmp_path):
    copy = tmp_path / "nan"
    model = BertForSequenceClassification.from_pretrained(saved / "bert")
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    model.save_pretrained(copy)
    _tokenizer(special=True).save_pretrained(copy)
    judge = ClassifierJudge(model=str(copy), harmful=1, max_length=64)
    assert judge.judge(PAIRS[:2]) == [None, None]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"model": "tiny:aligned"}, "model"),
        ({"model": "package:any"}, "model"),
        ({"template": "only {prompt}"}, "template"),
    ],
)
def test_settings_that_make_no_sense(settings, field):
    with pytest.raises(StudyError, match=f"Field: {field} = "):
        ClassifierJudge(**{"model": "path:x", "harmful": 1} | settings)


def test_the_identity_is_that_of_the_content(saved, tmp_path):
    here = ClassifierJudge(model=str(saved / "bert"), harmful=1)
    copied = shutil.copytree(saved / "bert", tmp_path / "elsewhere")
    there = ClassifierJudge(model=str(copied), harmful=1)
    assert here.identity() == there.identity()  # wherever it lies
    assert here.identity() == here.model_copy(update={"batch_size": 1}).identity()
    changed = shutil.copytree(saved / "bert", tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"note": 1}))
    others = [
        ClassifierJudge(model=str(changed), harmful=1),
        ClassifierJudge(model=str(saved / "llama"), harmful=1),
        ClassifierJudge(model=str(saved / "bert"), harmful=2),
        ClassifierJudge(model=str(saved / "bert"), harmful=1, template="{reply}"),
    ]
    assert len({here.identity(), *(o.identity() for o in others)}) == 5
