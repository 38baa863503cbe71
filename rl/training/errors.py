"""Errors that decide the exit code of a run (see `cli.run_main`)."""

EXIT_OK, EXIT_CRASH, EXIT_NUMERICAL, EXIT_CONFIG, EXIT_PREEMPTED = 0, 1, 3, 4, 75


class NumericalError(RuntimeError):
    """Loss, gradient or parameters are not finite; the run stops with exit code 3 and must not be restarted blindly."""


class Preempted(Exception):  # noqa: N818 - a planned stop, not a failure
    """The run saved its state after a stop signal; exit code 75, the same command with --auto_resume continues it."""


class CollectiveError(ValueError):
    """A user-facing error that every rank raises with the same text, so only rank 0 prints it; exit code 4."""


class CheckpointError(CollectiveError):
    """A checkpoint could not be written, or none could be read; the text names the file and the remedy."""


def exit_code_of(error: BaseException | None) -> int:
    """Exit code of a run that ends with `error` (None: it is done)."""
    if error is None:
        return EXIT_OK
    if isinstance(error, Preempted):
        return EXIT_PREEMPTED
    if isinstance(error, NumericalError):
        return EXIT_NUMERICAL
    return EXIT_CONFIG if isinstance(error, ValueError) else EXIT_CRASH
