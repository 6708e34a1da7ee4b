"""Running a level where its mask is set: one function, several ways to do it."""

from ugsp_net.sparse.dispatch import BACKENDS, performed_share, run_level, why_not

__all__ = ["BACKENDS", "performed_share", "run_level", "why_not"]
