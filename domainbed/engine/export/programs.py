"""Formats of programs, which run without this package."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domainbed.engine.export.base import (
    METADATA,
    TRACED_BATCH_SIZE,
    ExportFormat,
    Predict,
    example_inputs,
    public_metadata,
)
from domainbed.engine.frozen import is_frozen, rounded, saved_backbone
from domainbed.engine.trained_model import TrainedModel


class Logits(nn.Module):
    """The `predict` of a model's algorithm for images as a module, which contains the frozen backbone, if any."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.algorithm = model.algorithm
        self.hparams = model.hparams
        self.backbone = saved_backbone(model.metadata).cpu() if is_frozen(model.hparams) else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.algorithm.predict(rounded(self.backbone(images), self.hparams))


class TorchScript(ExportFormat):
    """A traced program; `torch.jit.load` loads it."""

    IS_PROGRAM = True

    def write(self, model: TrainedModel, path: Path) -> None:
        x = example_inputs(model, TRACED_BATCH_SIZE, is_program=True)
        program = torch.jit.trace(Logits(model), x, check_trace=False)
        torch.jit.save(program, path, {METADATA: json.dumps(public_metadata(model))})

    def read(self, path: Path) -> Predict:
        return torch.jit.load(path)


class TorchExport(ExportFormat):
    """A program for any batch size; `torch.export.load` loads it."""

    IS_PROGRAM = True

    def write(self, model: TrainedModel, path: Path) -> None:
        with open(path, "wb") as file:  # a path would have to end in .pt2
            torch.export.save(export_program(model), file, extra_files={METADATA: json.dumps(public_metadata(model))})

    def read(self, path: Path) -> Predict:
        with open(path, "rb") as file:
            return torch.export.load(file).module()


class ONNX(ExportFormat):
    """A program for any batch size, from `images` to `logits`."""

    REQUIRES = ("onnx", "onnxscript", "onnxruntime")
    IS_PROGRAM = True

    def write(self, model: TrainedModel, path: Path) -> None:
        program: Any = torch.onnx.export(
            export_program(model), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
        )
        proto = program.model_proto
        proto.metadata_props.add(key=METADATA, value=json.dumps(public_metadata(model)))
        path.write_bytes(proto.SerializeToString())

    def read(self, path: Path) -> Predict:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def export_program(model: TrainedModel) -> torch.export.ExportedProgram:
    """Return the program of `predict` for any batch size."""
    x = example_inputs(model, TRACED_BATCH_SIZE, is_program=True)
    return torch.export.export(Logits(model), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
