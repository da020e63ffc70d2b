"""What measures are compared with: one text at a time, no padding, no cache, float64 after the
logits.
"""

import torch


def logits(bundle, ids):
    """float64 logits after each of the tokens."""
    with torch.no_grad():
        return bundle.model(input_ids=torch.tensor([list(ids)])).logits[0].double()


def answer_nll(bundle, prompt, response):
    """−log p of each response token given all before it."""
    log_p = logits(bundle, [*prompt, *response]).log_softmax(-1)
    return [-log_p[len(prompt) - 1 + k, token].item() for k, token in enumerate(response)]


def greedy(bundle, prompt, steps, stops=None):
    """Tokens of greedy decoding, up to the end token (which is the last one then) or `steps`."""
    stops = {bundle.tokenizer.eos_token_id} if stops is None else stops
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(logits(bundle, ids)[-1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]
