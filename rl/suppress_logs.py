"""Quiets libraries that log a lot, by their loggers' levels only; warnings and errors still come through."""

import logging

NOISY_LOGGERS = ("sapien", "transformers", "imageio", "imageio_ffmpeg", "matplotlib", "PIL", "trimesh", "urllib3")


def suppress_logs(level: int = logging.WARNING) -> None:
    """Raises the noisy loggers to `level` where they are set lower; never lowers one."""
    for name in NOISY_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level < level:
            logger.setLevel(level)
