"""What measures are compared with: one text at a time, no padding, no cache, float64 after the logits."""

import torch


def logits(subject, ids):
    """float64 logits after each of the tokens."""
    with torch.no_grad():
        return subject.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()


def answer_nll(subject, prompt, response):
    """−log p of each response token given all before it."""
    log_p = logits(subject, [*prompt, *response]).log_softmax(-1)
    return [-log_p[len(prompt) - 1 + k, token].item() for k, token in enumerate(response)]


def greedy(subject, prompt, steps):
    """Tokens of greedy decoding, up to the end token (which is the last one then) or `steps`."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(logits(subject, ids)[-1].argmax()))
        if ids[-1] == subject.tokenizer.eos_token_id:
            break
    return ids[len(prompt) :]
