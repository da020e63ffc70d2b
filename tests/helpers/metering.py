"""What the tests of the meter share: its counts and torch's of the same work, and ways to pass."""

from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from titer.data.encoding import collate, encode
from titer.engine.meter import Meter


def trained(bundle):
    """The bundle's model, all of it trained, with the attention whose products torch can count:
    plain ("eager"), not the fused CPU kernel.
    """
    bundle.model.set_attn_implementation("eager")
    return bundle.model.requires_grad_(True).train()


def batch_of(bundle, examples):
    """Every other answer is cut to one word: batches need padding."""
    rows = [
        encode(bundle.tokenizer, e, e.response.split()[0] if i % 2 else e.response, 32)
        for i, e in enumerate(examples)
    ]
    return collate(rows, bundle.tokenizer.pad_token_id, bundle.device)


def with_lora(model, **settings):
    config = {"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(model.requires_grad_(False), LoraConfig(**config | settings))


def metered(work, **settings):
    """What work() costs."""
    meter = Meter(**settings)
    with meter.charging("step"):
        work()
    return meter.cost()


def torch_flops(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def both(work, **settings):
    """(titer's FLOPs, torch's) of work(), which is done twice."""
    return metered(work, **settings).flops, torch_flops(work)


def forward(model, batch, **more):
    return model(input_ids=batch.input_BT, attention_mask=batch.mask_BT, **more)


def last_block(model):
    return model.model.layers[-1]
