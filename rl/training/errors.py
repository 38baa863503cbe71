"""Errors that decide the exit code of a run (see `cli.run_main`)."""

EXIT_OK, EXIT_CRASH, EXIT_NUMERICAL, EXIT_CONFIG, EXIT_PREEMPTED = 0, 1, 3, 4, 75


class NumericalError(RuntimeError):
    """Loss, gradient or parameters are not finite; the run stops with exit code 3 and must not be restarted blindly."""


class Preempted(Exception):  # noqa: N818 - a planned stop, not a failure
    """The run saved its state after a stop signal; exit code 75, the same command with --auto_resume continues it."""


class OutOfMemoryError(RuntimeError):
    """Memory of the device or host ran out; the text names what to lower. Exit code 1: a later start may have room."""


class CollectiveError(ValueError):
    """A user-facing error that every rank raises with the same text, so only rank 0 prints it; exit code 4."""


class CheckpointError(CollectiveError):
    """A checkpoint could not be written, or none could be read; the text names the file and the remedy."""


def out_of_memory_text(error: BaseException) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"out of memory: {reason}. Lower training.num_envs or the batch (training.batch_size, ppo.minibatch_size, "
        "sac.batch_size), or raise training.gradient_accumulation_steps and lower training.batch_size by the same "
        "factor, which keeps the global batch; bash train.sh plan says what a run needs"
    )


def exit_code_of(error: BaseException | None) -> int:
    """Exit code of a run that ends with `error` (None: it is done)."""
    if error is None:
        return EXIT_OK
    if isinstance(error, Preempted):
        return EXIT_PREEMPTED
    if isinstance(error, NumericalError):
        return EXIT_NUMERICAL
    return EXIT_CONFIG if isinstance(error, ValueError) else EXIT_CRASH
