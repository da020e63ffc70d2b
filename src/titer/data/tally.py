"""How many texts judges have scored in this process. The count for a stretch of work is the
difference of two readings.
"""

from __future__ import annotations

from threading import Lock

_lock = Lock()
_calls = 0


def judge_calls() -> int:
    """Texts scored by a judge since the process began."""
    return _calls


def count_judge_calls(n: int) -> None:
    """Called by a judge for every batch it scores. n: texts in it."""
    global _calls
    if n < 0:
        raise ValueError(f"a judge cannot score {n} texts")
    with _lock:  # judges that ask a service do so from several threads
        _calls += n
