"""Tensors of a checkpoint under their Hugging Face names, whatever file they are stored in."""

from latentkv.models.weights.gguf_file import GGUFFile
from latentkv.models.weights.gguf_source import GGUFSource
from latentkv.models.weights.quantized_source import QuantizedSource
from latentkv.models.weights.reader import TensorReader
from latentkv.models.weights.safetensors_source import SafetensorsSource
from latentkv.models.weights.source import Storage, WeightSource

__all__ = ["GGUFFile", "GGUFSource", "QuantizedSource", "SafetensorsSource", "Storage", "TensorReader", "WeightSource"]
