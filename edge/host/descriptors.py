"""The limit of file descriptors."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)


def raise_limit() -> None:
    """Raise this process's soft limit to its hard limit.

    The soft limit of 1024 is for programs that use select(2), which this one does not. The camera process inherits the
    raised limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as exc:  # the hard limit is above the kernel's
        log.warning("limit of file descriptors not raised hard_limit=%d error=%s", hard, exc)
