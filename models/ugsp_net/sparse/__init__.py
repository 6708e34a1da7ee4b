"""Running a level where its mask is set: one function, several ways to do it."""

from ugsp_net.sparse.dispatch import BACKENDS, performed_share, run_kernels, run_last_kernels, run_level, why_not
from ugsp_net.sparse.inputs import Matching, SparseInputs
from ugsp_net.sparse.tiles import ConstantOutput, DenseOutput, LastOutput, pays, run_last_tiles, run_tiles

__all__ = [
    "BACKENDS",
    "ConstantOutput",
    "DenseOutput",
    "LastOutput",
    "Matching",
    "SparseInputs",
    "pays",
    "performed_share",
    "run_kernels",
    "run_last_kernels",
    "run_last_tiles",
    "run_level",
    "run_tiles",
    "why_not",
]
