import io
import re

from rl.training.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_one_plain_line_every_log_every_and_at_the_end() -> None:
    stream = io.StringIO()
    progress = Progress(total=5, log_every=2, stream=stream)
    for n in range(1, 6):
        progress.update(n, 50 * n, {"loss": 1.23456})
    progress.close()
    shown = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in shown] == ["episode 2/5", "episode 4/5", "episode 5/5"]
    assert re.fullmatch(r"episode 2/5  steps/s \d+\.\d  loss 1\.235  ETA \d+:\d\d:\d\d", shown[0])


def test_steps_that_jump_over_a_multiple_are_still_reported() -> None:
    stream = io.StringIO()
    progress = Progress(total=100, initial=7, log_every=10, stream=stream)
    for n in (9, 12, 18, 31):
        progress.update(n, n, {})
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["12/100", "31/100"]


def test_a_terminal_gets_a_bar_that_starts_where_the_run_resumed() -> None:
    stream = Terminal()
    progress = Progress(total=10, initial=4, stream=stream)
    progress.update(5, 50, {"loss": 0.5})
    progress.close()
    assert "5/10" in stream.getvalue() and "\r" in stream.getvalue()


def test_other_ranks_stay_silent() -> None:
    stream = Terminal()
    progress = Progress(total=1, enabled=False, stream=stream)
    progress.update(1, 1, {"loss": 0.0})
    progress.close()
    assert stream.getvalue() == ""


def test_durations_are_hours_minutes_seconds() -> None:
    assert [duration(s) for s in (0, 59.6, 3661, 360000)] == ["0:00:00", "0:01:00", "1:01:01", "100:00:00"]
