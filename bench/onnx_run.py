"""Tensors of an ONNX graph for given images, by ONNX Runtime on the CPU: what 8 bits are judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Images of one call.
BATCH = 8

Images = NDArray[np.float32]


def run_graph(model: Any, images: Images, name: str = "outputs") -> NDArray[np.float32]:  # onnx is untyped
    """Return the tensor *name* of the onnx.ModelProto *model* for *images*."""
    return np.concatenate([tensors[0] for tensors in run_batches(model, images, [name])])


def run_batches(
    model: Any, images: Images, names: Sequence[str]
) -> Iterator[list[NDArray[np.float32]]]:  # onnx is untyped
    """Yield the tensors *names* of *model* for `BATCH` of *images* after the other.

    By ONNX Runtime with as many threads as torch.
    """
    import onnx
    import onnxruntime
    import torch

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    told = {value.name for value in model.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in told
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in np.array_split(images, -(-len(images) // BATCH)):
        yield session.run(list(names), {"images": batch})
