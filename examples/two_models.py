"""The releaser's case from Python: M and M* are two model directories (or hub:ORG/NAME); may M* be
said to resist?

    python examples/two_models.py M M_STAR attack.jsonl prompts.jsonl benign.jsonl runs/mine

attack and benign: JSONL, JSON, CSV or Parquet with prompt and response; prompts: with prompt, asked
of the attacked model and never trained on. `titer evaluate` does the same from the command
line.
"""

import sys
from typing import Any

import titer
from titer.data.sources.files import own_text
from titer.study.releaser import releaser_study


def main(
    model: str,
    candidate: str,
    attack: str,
    prompts: str,
    benign: str,
    directory: str,
    **options: Any,
) -> None:
    study = releaser_study(
        model=model,
        candidates=[candidate],
        attack_data=own_text(attack, field="attack", needs=["response"]),
        eval_prompts=own_text(prompts, field="prompts"),
        benign_data=own_text(benign, field="benign", needs=["response"]),
        **options,
    )
    titer.run(study, directory)
    verdict = titer.judge(directory)
    resistance = verdict.candidates[0].resistance
    print(resistance.claim)
    for sentence in resistance.missing:
        print("missing:", sentence)
    print("report:", titer.write_report(directory).html)


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    main(*sys.argv[1:])
