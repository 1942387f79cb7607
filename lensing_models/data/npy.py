"""One ``.npy`` file, read so that nothing in it can run: pickled arrays go through a whitelist."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import tokenize
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lensing_models.data.candidate import BadFileError

#: What parsing hostile or damaged bytes may raise.
DAMAGE = (
    *(pickle.UnpicklingError, tokenize.TokenError, ValueError, TypeError, SyntaxError, LookupError),
    *(AttributeError, ImportError, EOFError, MemoryError, OverflowError, RecursionError),
)
_NDARRAY = "numpy.ndarray"  # stands for the class: a pickle can name it, but not call it
_NUMBER = re.compile(r"[iu][1248]|f[248]|b1")
#: Bytes that a pickle's texts may become, in units of its own size.
ENCODED = 4
_Order = Literal["C", "F"]


def read_npy(content: bytes, name: str) -> NDArray[Any]:  # Any: whatever type the file declares
    """Return the array in *content*, the bytes of a ``.npy`` file.

    The header is read first; what it declares must be what the file holds. An array of objects is
    rebuilt from its pickle by stand-ins of our own for NumPy's constructors: beside numbers and
    arrays of numbers it may hold lists, texts and the like of Python, but nothing that runs.

    Args:
        content: The whole file.
        name: Its name, for messages.

    Raises:
        BadFileError: If it is truncated, damaged, or its pickle asks for anything else; then
            nothing of it has run.
    """
    stream = io.BytesIO(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy on headers of Python 2, the compiler on damaged ones
        try:
            return _parse(stream, content)
        except DAMAGE as error:
            raise BadFileError(f"{name} is no readable .npy file: {error}") from error


def _parse(stream: io.BytesIO, content: bytes) -> NDArray[Any]:  # Any: as above
    shape, dtype = _read_header(stream)
    if dtype.hasobject:
        return _unpickle(content[stream.tell() :], shape)
    declared, held = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if declared != held or min(shape, default=0) < 0:
        raise ValueError(f"the header declares {declared} bytes of data, the file has {held}")
    stream.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)  # Any: as above
    return array


def _read_header(stream: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:  # Any: as declared
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version} is unknown; known: (1, 0), (2, 0)")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _unpickle(content: bytes, shape: tuple[int, ...]) -> NDArray[Any]:  # Any: objects
    for opcode, argument, _ in pickletools.genops(content):
        # The memo is an array up to the largest place put into: a huge one takes all memory.
        if "PUT" in opcode.name and isinstance(argument, int) and argument > len(content):
            raise pickle.UnpicklingError(f"memo place {argument} in {len(content)} bytes")
    array = _plain(_Unpickler(content).load())
    if not isinstance(array, np.ndarray) or array.dtype != object or array.shape != shape:
        raise pickle.UnpicklingError(f"the pickle is not the array of objects {shape} that the header declares")
    return array


class _Unpickler(pickle.Unpickler):
    """Knows the names that a pickled array needs, and gives a stand-in for each.

    Args:
        content: The pickle.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")  # latin1: as Python 2 wrote bytes
        self._budget = ENCODED * len(content)

    def find_class(self, module: str, name: str) -> object:
        """Return the stand-in for *name*; UnpicklingError if there is none."""
        stand_in = self._stand_ins().get((module.replace("numpy.core", "numpy._core"), name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which no array needs; refused")
        return stand_in

    def _stand_ins(self) -> dict[tuple[str, str], object]:
        # Bound methods: nothing of a pickle's reaches the real constructors.
        return {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): self._dtype,
            ("numpy._core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy._core.multiarray", "scalar"): self._scalar,
            ("numpy._core.numeric", "_frombuffer"): self._from_buffer,
            ("_codecs", "encode"): self._encode,
        }

    def _dtype(self, code: str, *_: object) -> _DType:
        return _DType(code)

    def _reconstruct(self, cls: object, *_: object) -> _Array:
        if cls != _NDARRAY:
            raise pickle.UnpicklingError("its pickle holds a subclass of ndarray; refused")
        return _Array()

    def _scalar(self, dtype: _DType, data: bytes | str) -> object:
        return _build(data, dtype, (1,), "C")[0]

    def _from_buffer(self, data: bytes, dtype: _DType, shape: tuple[int, ...], order: _Order) -> _Array:
        array = _Array()
        array.value = _build(data, dtype, shape, order)
        return array

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"its pickle asks for the codec {encoding!r}; refused")
        self._budget -= len(text)
        if self._budget < 0:  # one text, encoded again and again, would take all memory
            raise pickle.UnpicklingError("its pickle makes more bytes than it holds; refused")
        return text.encode("latin1")


class _DType:
    """A type of numbers, or of objects; of a pickled state only the byte order is believed."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        if not _NUMBER.fullmatch(code) and code not in ("O", "O8", "O4"):
            raise pickle.UnpicklingError(f"its pickle holds values of type {code!r}; refused")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")
        self.order = str(state[1])


class _Array:
    """An array whose content follows in the pickle, as its state."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None  # Any: numbers or objects

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # Any: unpickled, checked by _build
        _, shape, dtype, fortran, data = state
        self.value = _build(data, dtype, shape, "F" if fortran else "C")


def _build(data: object, dtype: _DType, shape: tuple[int, ...], order: _Order) -> NDArray[Any]:  # Any: as _DType says
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("an array without a type")
    if dtype.code.startswith("O"):
        if not isinstance(data, list):
            raise pickle.UnpicklingError("an array of objects without a list of them")
        objects = np.empty(len(data), object)
        for place, value in enumerate(data):
            objects[place] = _plain(value)
        return objects.reshape(shape, order=order)
    content = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("an array without its bytes")
    return np.frombuffer(content, np.dtype(dtype.order + dtype.code)).reshape(shape, order=order)


def _plain(value: object) -> object:
    return value.value if isinstance(value, _Array) else value
