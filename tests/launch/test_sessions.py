"""The proof that a test of "no process is left" can fail."""

from tests.launch.sessions import run_in_session


def test_a_child_that_stays_behind_is_seen_and_ended() -> None:
    done = run_in_session(["bash", "-c", "sleep 300 > /dev/null 2>&1 & echo $!"], timeout=20)
    assert done.process.returncode == 0
    assert done.left == [f"{done.process.stdout.strip()} sleep"]


def test_a_command_that_waits_for_its_children_leaves_nothing() -> None:
    assert run_in_session(["bash", "-c", "sleep 0.1 & wait"], timeout=20).left == []
