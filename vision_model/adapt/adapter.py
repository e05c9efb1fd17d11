"""LoRA without torch: write low-rank changes into the graph's bytes and start a session on them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_model.errors import HeadInvalid, PrecisionUnavailable
from vision_model.graph import Graph
from vision_model.manifest import GraphSpec
from vision_model.runtime import Model

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.{dims, data_type, name, raw_data}.
GRAPH, INITIALIZER, DIMS, DATA_TYPE, NAME, RAW_DATA = 7, 5, 1, 2, 8, 9
DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2")}  # TensorProto.FLOAT, FLOAT16
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf wire types


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where an initializer's numbers lie in the bytes of a graph."""

    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): the graph's initializer `names[i]` gains `down[i] @ up[i]`."""

    names: tuple[str, ...]
    down: NDArray[np.float16] = field(repr=False)  # (L, inputs, rank)
    up: NDArray[np.float16] = field(repr=False)  # (L, rank, outputs)

    def change(self, i: int) -> NDArray[np.float32]:
        """What weight `i` gains, (inputs, outputs)."""
        product: NDArray[np.float32] = self.down[i].astype(np.float32) @ self.up[i].astype(np.float32)
        return product

    def applied(self, model: Model) -> Model:
        """A second model on the same graph with these changes in its weights; costs the memory of one more.

        Raises PrecisionUnavailable without a graph of 16 or 32 bits, and HeadInvalid if it has no such weights.
        """
        spec = changeable(model)
        data = bytearray((model.folder / spec.file).read_bytes())
        tensors = initializers(data)
        for i, name in enumerate(self.names):
            tensor = tensors.get(name)
            if tensor is None or tensor.shape != (self.down.shape[1], self.up.shape[2]):
                raise HeadInvalid(f"the head changes {name}, which the graph does not hold in that shape; fit it again")
            weight = values(data, tensor)
            data[tensor.start : tensor.stop] = (weight + self.change(i)).astype(tensor.dtype).tobytes()
        graph = Graph(bytes(data), provider=model.graph.asked, size=model.manifest.input.size)
        return Model(model.manifest, graph, folder=model.folder, precision=spec.precision)


def changeable(model: Model) -> GraphSpec:
    """The model's graph whose weights are plain numbers. Raises PrecisionUnavailable."""
    try:
        return model.manifest.graph(precision="fp16-stored")
    except PrecisionUnavailable:
        return model.manifest.graph(precision="fp32")


def values(data: bytes | bytearray, tensor: Tensor) -> NDArray[np.float32]:
    """The numbers of an initializer in fp32."""
    count = (tensor.stop - tensor.start) // tensor.dtype.itemsize
    return np.frombuffer(data, tensor.dtype, count, tensor.start).reshape(tensor.shape).astype(np.float32)


def initializers(data: bytes | bytearray) -> dict[str, Tensor]:
    """Every float initializer that an ONNX file holds as raw data, by its name."""
    found = {}
    for number, _, start, stop in _fields(data, 0, len(data)):
        if number != GRAPH:
            continue
        for inner, _, begin, end in _fields(data, start, stop):
            if inner == INITIALIZER and (named := _tensor(data, begin, end)) is not None:
                found[named[0]] = named[1]
    return found


def _tensor(data: bytes | bytearray, start: int, stop: int) -> tuple[str, Tensor] | None:
    name, dtype, raw = "", 0, None
    shape: list[int] = []
    for number, wire, begin, end in _fields(data, start, stop):
        if number == NAME:
            name = data[begin:end].decode()
        elif number == RAW_DATA:
            raw = begin, end
        elif number == DATA_TYPE:
            dtype = _varint(data, begin)[0]
        elif number == DIMS and wire == VARINT:
            shape.append(_varint(data, begin)[0])
        elif number == DIMS:  # packed
            while begin < end:
                size, begin = _varint(data, begin)
                shape.append(size)
    if raw is None or dtype not in DTYPES:
        return None
    return name, Tensor(*raw, tuple(shape), DTYPES[dtype])


def _fields(data: bytes | bytearray, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, start, stop) of each field of a protobuf message."""
    while start < stop:
        key, start = _varint(data, start)
        number, wire = key >> 3, key & 7
        if wire == BYTES:
            length, start = _varint(data, start)
            end = start + length
        elif wire == VARINT:
            end = _varint(data, start)[1]
        elif wire in (FIXED32, FIXED64):
            end = start + (4 if wire == FIXED32 else 8)
        else:
            raise HeadInvalid(f"the graph is not a protobuf file that can be read (wire type {wire})")
        yield number, wire, start, end
        start = end


def _varint(data: bytes | bytearray, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
