import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.config import LoggingConfig
from rl.training.logging_setup import setup_logging
from tests.training.run_here import undisturbed

log = logging.getLogger("rl.test_logging_setup")


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Gives pytest its handlers and levels back."""
    with undisturbed():
        yield


def test_the_file_holds_every_detail_and_the_console_only_its_level(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = setup_logging(LoggingConfig(), tmp_path)
    log.debug("a detail")
    log.info("a fact")
    assert path is not None and path.parent == tmp_path / "logs" and path.name.startswith("rl_training_")
    assert "a detail" in path.read_text() and "a fact" in path.read_text()
    console = capsys.readouterr().err
    assert "a fact" in console and "a detail" not in console


def test_other_packages_are_not_heard_below_info(tmp_path: Path) -> None:
    path = setup_logging(LoggingConfig(), tmp_path)
    logging.getLogger("PIL.PngImagePlugin").debug("chatter")
    assert path is not None and "chatter" not in path.read_text()


def test_other_ranks_have_a_prefix_a_file_of_their_own_and_a_quiet_console(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = setup_logging(LoggingConfig(), tmp_path, rank=1, world_size=2)
    log.info("a fact")
    log.warning("a problem")
    assert path is not None and "_rank1" in path.name and "[rank 1] INFO" in path.read_text()
    console = capsys.readouterr().err
    assert "a fact" not in console and "[rank 1] WARNING rl.test_logging_setup: a problem" in console


def test_two_starts_in_the_same_second_have_different_files(tmp_path: Path) -> None:
    paths = {setup_logging(LoggingConfig(), tmp_path) for _ in range(3)}
    assert len(paths) == 3


def test_file_logging_can_be_switched_off(tmp_path: Path) -> None:
    assert setup_logging(LoggingConfig(enable_file_logging=False), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logging\.console_level is 'LOUD'; use one of DEBUG"):
        setup_logging(LoggingConfig(console_level="LOUD"))
