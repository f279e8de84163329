"""A tagger in an ONNX file, written by hand: the mean of each colour, as three chances.

Protocol buffers: a field is its number and kind, then its value (onnx.proto3 for the numbers).
"""

from pathlib import Path


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _tensor(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1, side)) for side in shape)
    floats = _field(1, 1) + _field(2, dims)  # elem_type FLOAT, shape
    return _field(1, name) + _field(2, _field(1, floats))


def write_tagger(path: Path, side: int) -> None:
    """Pictures (1, side, side, 3) of 0..255 to (1, 3): the means of blue, green and red / 255."""
    axes = _field(1, "axes") + b"".join(_field(8, axis) for axis in (1, 2)) + _field(20, 7)
    keep = _field(1, "keepdims") + _field(3, 0) + _field(20, 2)
    mean = _field(1, "picture") + _field(2, "mean") + _field(4, "ReduceMean")
    mean += _field(5, axes) + _field(5, keep)
    scale = _field(1, 1) + _field(2, 1) + _field(8, "scale")  # dims, FLOAT, name
    scale += _field(9, b"\x81\x80\x80\x3b")  # 1 / 255 as little-endian float32
    times = _field(1, "mean") + _field(1, "scale") + _field(2, "chances") + _field(4, "Mul")
    graph = _field(1, mean) + _field(1, times) + _field(2, "tagger") + _field(5, scale)
    graph += _field(11, _tensor("picture", (1, side, side, 3)))
    graph += _field(12, _tensor("chances", (1, 3)))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 13)))
