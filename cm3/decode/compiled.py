"""Steps of fixed shapes through `torch.compile`: what lies between the matrix products of a step becomes a few loops.

Compiling takes tens of seconds for each number of rows and slots, once per process; what is compiled draws the same up to the
rounding of sums. On a CUDA device the compiled step is then recorded as any other (`captured.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cm3.core.errors import UsageError
from cm3.decode.captured import NewRecorder, Recorder, Step, only_known
from cm3.model import CM3ForCausalLM

_MOST_SHAPES = 256  # as many as torch.compile allows at all; its own limit of 8 would refuse the ninth batch of another size


def require_compilable(model: CM3ForCausalLM) -> None:
    """Raise `UsageError` for a model with modules or hooks of others, which a compiler may not see through."""
    if not only_known(model):
        raise UsageError("a model with adapters or hooks cannot be compiled; merge or remove them, or decode without compiling")


def compiled(recorders: NewRecorder | None) -> NewRecorder:
    """Recorders that compile a step and then record it by `recorders`, or run it as it is where there are none."""

    def new() -> Recorder:
        record = None if recorders is None else recorders()
        return _Compiled if record is None else lambda step: record(_Compiled(step))

    return new


class _Compiled:
    """`step`, compiled at its first call. Raises `UsageError` where there is no compiler to do it."""

    def __init__(self, step: Step) -> None:
        self._step = torch.compile(step, fullgraph=True, dynamic=False)

    def __call__(self, *given: Tensor) -> Tensor:
        from torch._dynamo import config  # importing it takes seconds
        from torch._dynamo.exc import BackendCompilerFailed

        try:
            with config.patch(recompile_limit=_MOST_SHAPES):
                return self._step(*given)
        except BackendCompilerFailed as error:
            [said, *_] = str(error).splitlines()
            raise UsageError(
                f"steps cannot be compiled here ({said}); install a C++ compiler (on a GPU: Triton), or decode without compiling"
            ) from error
