"""ONNX files (`.onnx`), converted to torch by onnx2pytorch, so that gradients lead through them.

A converted network is taken only if it answers as onnxruntime does, and if its gradients are the slopes of what
onnxruntime computes. Any other file becomes a black box, which onnxruntime answers for. onnxruntime also simplifies the
file first (constants folded, identities removed), which the converter relies on. onnx2pytorch was chosen over
onnx2torch, which knows no operators of opsets from 18 on and has had no release since 2024; both are under Apache-2.0.
"""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audit.classifiers.black_box import CHUNK, BlackBox
from audit.classifiers.checkpoint import existing_file
from audit.classifiers.gradients import Exact, compare_slopes
from audit.classifiers.input_settings import InputSettings
from audit.classifiers.loaded import Loaded, Request, missing_package
from audit.classifiers.probe import first_line, same
from audit.errors import ClassifierError
from audit.runtime.seeds import stage_generator

PROBES = 2


class NotDifferentiable(Exception):
    """An ONNX file runs, and no network with its gradients can be had of it, for the reason that this holds."""


def open_session(file: Path, simplified: Path | None = None) -> Any:
    """Open an ONNX file in onnxruntime on the CPU, and write it to `simplified`; raises ClassifierError."""
    existing_file(file, "Classifier file")
    try:
        import onnxruntime
    except ImportError:
        raise missing_package("onnx", f"'{file}'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if simplified is not None:
        options.optimized_model_filepath = str(simplified)
    try:
        # There is no other provider to fall back to, and trying that would be printed.
        return onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], enable_fallback=False
        )
    except Exception as error:
        raise ClassifierError(
            f"Classifier file '{file}' cannot be opened by onnxruntime ({first_line(error)}): export it again."
        ) from error


def input_of(session: Any, file: Path) -> tuple[str, int | None, InputSettings]:
    """Return name, batch size (None: any) and settings of the only input, images; raises ClassifierError."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        shown = ", ".join(f"{one.name} {one.shape} of {one.type}" for one in inputs)
        raise ClassifierError(
            f"Classifier file '{file}' takes {shown or 'nothing'} where one float32 input [N, C, H, W] is needed: "
            "export the network that takes the images alone."
        )
    batch, channels, height, width = (n if isinstance(n, int) else None for n in inputs[0].shape)
    side = height if height == width else None
    own = InputSettings(input_size=side, channels=channels if channels in (1, 3) else None)
    return inputs[0].name, batch, own.with_origin("container")


def answers(session: Any, name: str, images: Tensor) -> Tensor:
    """Run onnxruntime on `images` and return its first output on the CPU."""
    return torch.from_numpy(session.run(None, {name: images.detach().cpu().numpy()})[0])


def _without_defaults(model: Any) -> Any:
    """Drop `training_mode = 0` of batch norms: it is the default, and onnx2pytorch does not know the attribute."""
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            for one in [a for a in node.attribute if a.name == "training_mode" and a.i == 0]:
                node.attribute.remove(one)
    return model


def _converted(simplified: Path, file: Path) -> nn.Module:
    try:
        import onnx
        from onnx2pytorch import ConvertModel
    except ImportError:
        raise missing_package("onnx", f"'{file}'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: nn.Module = ConvertModel(_without_defaults(onnx.load(str(simplified))))
    except Exception as error:
        raise NotDifferentiable(first_line(error)) from error
    return network.eval()


def _black_box(session: Any, name: str, batch: int | None) -> BlackBox:
    def answer(pixels: np.ndarray) -> object:
        found = session.run(None, {name: pixels})
        return found[0] if len(found) == 1 else tuple(found)

    return BlackBox(answer, batch or CHUNK)


def _check(network: nn.Module, session: Any, name: str, images: Tensor) -> None:
    """Raise NotDifferentiable unless `network` answers as `session` does and its gradient is the slope of that."""
    expected = answers(session, name, images)
    weights = torch.randn(expected.shape[1:], generator=stage_generator(0, "onnx/weights"))

    def first(found: Any) -> Tensor:
        tensor: Tensor = found[0] if isinstance(found, (list, tuple)) else found
        return tensor

    def weighted(found: Tensor) -> Tensor:
        return (found * weights).flatten(1).sum(1)

    try:
        with torch.no_grad():
            found = first(network(images))
        if not same(found, expected):
            gap = float((found - expected).abs().max()) if found.shape == expected.shape else float("nan")
            raise NotDifferentiable(f"what onnx2pytorch makes of it answers otherwise, by {gap:.2g}")
        slopes = compare_slopes(
            lambda x: weighted(first(network(x))),
            Exact(lambda x: weighted(answers(session, name, x)), torch.float32),
            images,
            stage_generator(0, "onnx/directions"),
        )
    except NotDifferentiable:
        raise
    except Exception as error:
        raise NotDifferentiable(first_line(error)) from error
    if not slopes.agree:
        raise NotDifferentiable(
            f"its gradients differ from the slopes of what onnxruntime computes by {slopes.error:.0%}"
        )


def load(request: Request) -> Loaded:
    """Convert the file and hold the network against onnxruntime, or take it as a black box; raises ClassifierError."""
    file = Path(request.place)
    with TemporaryDirectory() as folder:
        simplified = Path(folder) / "simplified.onnx"
        session = open_session(file, simplified)
        name, batch, own = input_of(session, file)
        network: nn.Module | str
        try:
            network = _converted(simplified, file)
        except NotDifferentiable as error:
            network = str(error)
    settings = request.given.completed_by(own)
    side = settings.input_size or 224
    shape = (batch or PROBES, settings.channels or request.channels, side, side)
    images = torch.rand(shape, generator=stage_generator(0, "onnx/images"))
    called = f"{file.name} (ONNX)"
    try:
        if isinstance(network, str):
            raise NotDifferentiable(network)
        _check(network, session, name, images)
    except NotDifferentiable as error:
        told = (
            "black-box-onnx",
            f"it cannot be converted to a network with gradients ({error}), so that it is a black box that onnxruntime "
            "answers for: what follows gradients is left out. Give the network itself by architecture or factory, or "
            "as a TorchScript or torch.export file, to have that as well",
        )
        return Loaded(_black_box(session, name, batch), settings, called, file.name, notices=(told,))
    return Loaded(network, settings, called, file.name)
