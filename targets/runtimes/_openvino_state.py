"""Models with a state in OpenVINO's own form: what is kept stays in the runtime.

The form is that of openvino.genai: beside the model's own inputs there is ``beam_idx``, which says
for each row of a batch which row of the last run it goes on from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from targets.signature import PAST, StateSpec

__all__ = ["BEAMS", "keep_state"]

BEAMS = "beam_idx"
"""Input (batch,) int32: the rows of the last run."""


def keep_state(model: Any, state: Sequence[StateSpec], first_input: str) -> None:
    """Turn inputs and outputs of a model into variables that its requests keep, in place.

    Args:
        model: As OpenVINO read it; all states have the batch first.
        state: What to keep.
        first_input: Name of an input whose first dimension is that of the batch.
    """
    import openvino
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    batch = model.input(first_input).get_partial_shape()[0]
    beams = opset13.parameter(openvino.PartialShape([batch]), np.int32, name=BEAMS)
    beams.output(0).get_tensor().set_names({BEAMS})
    model.add_parameters([beams])
    axis = opset13.constant(0, dtype=np.int64)
    for spec in state:
        port = model.input(spec.name)
        readers = port.get_target_inputs()
        chosen = opset13.gather(port, beams, axis)
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {spec.name: spec.output for spec in state})
    size = opset13.gather(
        opset13.shape_of(model.input(first_input), output_type="i64"),
        opset13.constant([0], dtype=np.int64),
        axis,
    )
    shapes = {spec.name + spec.output: spec.shape for spec in state}
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, *rest = shapes[node.get_variable_id()]
            sizes = [0 if dim == PAST else int(dim) for dim in rest]
            shape = opset13.concat([size, opset13.constant(sizes, dtype=np.int64)], 0)
            zero = opset13.constant(0, dtype=node.get_output_element_type(0))
            node.set_arguments([opset13.broadcast(zero, shape)])
    model.validate_nodes_and_infer_types()
