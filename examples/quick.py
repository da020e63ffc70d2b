"""A study from Python: run it, judge it, write the report. Run again, it resumes; finished cells
are not done again.
"""

import sys

import titer


def main(study: str = "quickstart", directory: str = "runs/quickstart") -> None:
    titer.run(study, directory)
    verdict = titer.judge(directory)
    for candidate in verdict.candidates:
        print(candidate.name, candidate.overall, "-", candidate.resistance.claim)
    print("report:", titer.write_report(directory).html)


if __name__ == "__main__":  # worker processes import this file
    main(*sys.argv[1:])
