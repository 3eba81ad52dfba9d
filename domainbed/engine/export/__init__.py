"""Export formats of trained models, by name."""

from typing import TYPE_CHECKING

from domainbed.registry import Registry

if TYPE_CHECKING:  # imports torch
    from domainbed.engine.export.base import ExportFormat

EXPORT_FORMATS: Registry["type[ExportFormat]"] = Registry(
    "format",
    builtin={
        "safetensors": "domainbed.engine.export.weights:Safetensors",
        "huggingface": "domainbed.engine.export.weights:HuggingFace",
        "torchscript": "domainbed.engine.export.programs:TorchScript",
        "torch_export": "domainbed.engine.export.programs:TorchExport",
        "onnx": "domainbed.engine.export.programs:ONNX",
    },
)
