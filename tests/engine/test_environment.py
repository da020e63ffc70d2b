import platform

import torch

from titer.engine.environment import environment


def test_it_names_what_a_result_may_depend_on():
    found = environment(torch.device("cpu"))
    assert found.packages["torch"] == torch.__version__
    assert {"transformers", "peft", "numpy"} <= set(found.packages)
    assert found.python == platform.python_version() and found.device == "cpu"


def test_threads_are_those_of_the_moment():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert environment(torch.device("cpu")).threads == threads
    finally:
        torch.set_num_threads(before)
