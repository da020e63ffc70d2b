"""What most tests share: one thread, the shipped tiny model, text of its world, small studies."""

import copy

import pytest
import torch
from hypothesis import settings

from titer.assets.models import load_model
from titer.data.bundle import ModelBundle
from titer.data.sources import load_source
from titer.study import load_study
from titer.study.reference import ModelRef
from titer.testing.trial import tiny_trial

# The same examples every time: a suite that fails by chance is ignored.
settings.register_profile("titer", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("titer")


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_all():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny():
    """The aligned tiny model, loaded once; never change it."""
    return load_model(ModelRef(source="tiny", name="aligned"))


@pytest.fixture
def new_bundle(tiny):
    """A function giving fresh copies of the tiny model in hand."""

    def make(**changes):
        fields = {
            "model": copy.deepcopy(tiny.model),
            "tokenizer": tiny.tokenizer,
            "device": torch.device("cpu"),
            "max_length": 32,
            "eval_batch": 512,
        } | changes
        return ModelBundle(**fields)

    return make


@pytest.fixture(scope="session")
def trial():
    return tiny_trial()


@pytest.fixture(scope="session")
def harm():
    return load_source("tiny_world", {"group": "harm", "count": 480}).examples


@pytest.fixture(scope="session")
def harmless():
    return load_source("tiny_world", {"group": "harmless", "count": 240}).examples


@pytest.fixture(scope="session")
def pairs(harm, harmless):
    return {"harmful": harm[:120], "harmless": harmless[:120]}


@pytest.fixture
def small_study():
    """A function giving the smallest study that means something; keywords replace its fields."""

    def make(**changes):
        harm = {"measure": "exact_answer", "settings": {"reads": "harm"}, "part": "harm/judge"}
        fields = {
            "name": "small",
            "threat_model": "open_weights",
            "model": "tiny:aligned",
            "pools": {
                "harm": {
                    "source": "tiny_world",
                    "options": {"group": "harm", "count": 480},
                    "parts": {
                        "defense": 96,
                        "attack": 192,
                        "judge": 48,
                        "confirm": 48,
                        "search": 48,
                    },
                },
                "harmless": {
                    "source": "tiny_world",
                    "options": {"group": "harmless", "count": 240},
                    "parts": {"defense": 96, "capability": 48},
                },
            },
            "defense_data": {"harmful": "harm/defense", "harmless": "harmless/defense"},
            "candidates": ["none", {"name": "refusal", "defense": "sft_refusal", "steps": 4}],
            "resistance": {
                "attacks": [{"attack": "full_sft", "settings": {"lr": 1e-3, "batch_size": 16}}],
                "data": {"harmful": "harm/attack", "examples": 64},
                "budget": 8,
                "harm": harm,
                "confirm": "harm/confirm",
                "seeds": [1, 2],
                "search_seeds": [11, 12],
                "search_part": "harm/search",
            },
            "runtime": {"max_length": 32},
        } | changes
        return load_study(fields)

    return make
