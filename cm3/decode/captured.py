"""A step of fixed shapes, recorded once as a CUDA graph and replayed: one launch instead of hundreds.

A step is a function of tensors. What it reads besides them (weights, cache) it must find in the same memory every time, and
what it does may neither depend on values nor wait for the device. Recording is exact: the same kernels on the same numbers.
"CUDA graphs" in PyTorch's notes on CUDA semantics says what a recording may contain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cm3.decode.int8 import Int8Linear
from cm3.model import CM3ForCausalLM, modeling

Step = Callable[..., Tensor]
Recorder = Callable[[Step], Step]  # makes of a step of fixed shapes what is run in its place
NewRecorder = Callable[[], Recorder]  # of the steps that share one set of rows

_KNOWN = (nn.Linear, nn.Embedding, nn.ModuleList, Int8Linear)


def graphs_for(model: CM3ForCausalLM) -> NewRecorder | None:
    """`CudaGraphs` where the steps of `model` can be recorded, on a CUDA device; None anywhere else."""
    return partial(CudaGraphs, model.device) if model.device.type == "cuda" and only_known(model) else None


def only_known(model: CM3ForCausalLM) -> bool:
    """Whether nothing in `model` is a module or a hook of others, such as an adapter.

    These may look at values or keep what they are given, which a replay would pass over without a word.
    """
    known = all(type(module) in _KNOWN or type(module).__module__ == modeling.__name__ for module in model.modules())
    return known and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class CudaGraphs:
    """Records steps that take turns on one stream, never two at once; so they share the memory of what lies between."""

    def __init__(self, device: torch.device) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def __call__(self, step: Step) -> Step:
        return _Captured(step, self)


class _Captured:
    """`step`, run directly the first time, recorded the second and replayed from then on.

    The first run sets up what must not be set up while recording; a step needed only once is never recorded. The result of a
    replay is overwritten by the next one. Tensors given must keep their shapes.
    """

    def __init__(self, step: Step, graphs: CudaGraphs) -> None:
        self._step, self._graphs, self._warm = step, graphs, False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *given: Tensor) -> Tensor:
        if not self._warm:
            self._warm = True
            return self._run_aside(given)
        if self._graph is None:
            self._graph = self._record(given)
        for static, tensor in zip(self._given, given):
            static.copy_(tensor)
        self._graph.replay()
        return self._made

    def _run_aside(self, given: tuple[Tensor, ...]) -> Tensor:
        """Run on the stream of the recording, which has libraries and workspaces of its own."""
        stream = self._graphs.stream
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            made = self._step(*given)
        current.wait_stream(stream)
        made.record_stream(current)
        return made

    def _record(self, given: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        graph, graphs = torch.cuda.CUDAGraph(), self._graphs
        self._given = [tensor.clone() for tensor in given]
        # "thread_local": other threads may go on using the device meanwhile
        recording = torch.cuda.graph(graph, graphs.pool, graphs.stream, capture_error_mode="thread_local")
        with torch.cuda.device(graphs.stream.device), recording:
            self._made = self._step(*self._given)
        return graph
