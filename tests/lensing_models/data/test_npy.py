"""A .npy file is read whole, or refused by name with nothing of it run."""

from __future__ import annotations

import contextlib
import functools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensing_models.data.candidate import BadFileError
from lensing_models.data.npy import read_npy
from tests.lensing_models.data.packing import Hostile, counts, npy, pair, scaled


def header_of(shape: tuple[int, ...], descr: str) -> bytes:
    """Return the head of a .npy file that declares *shape*."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "array",
    [scaled(1), counts(2), np.asfortranarray(counts(3)), counts(4).astype(">f4"), np.float64(0.5)],
    ids=["float64", "int64", "fortran", "big-endian", "scalar"],
)
def test_a_plain_array_is_what_was_saved(array: np.ndarray) -> None:
    np.testing.assert_array_equal(read_npy(npy(array), "a.npy"), array)


@pytest.mark.parametrize("value", [0.04, np.float64(0.04), np.array(0.04), np.array([0.04])], ids=repr)
def test_a_pickled_pair_is_what_was_saved(value: object) -> None:
    image = counts(5)

    read = read_npy(pair(image, value), "a.npy")

    np.testing.assert_array_equal(read[0], image)
    assert float(np.asarray(read[1]).reshape(())) == 0.04


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2", "<f4", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_pickled_image_keeps_type_and_order(dtype: str, order: str) -> None:
    image = np.array(counts(6) % 7, dtype=dtype, order=order)  # type: ignore[call-overload]  # a parameter

    read = read_npy(pair(image, 0.5), "a.npy")[0]

    np.testing.assert_array_equal(read, image)
    assert read.dtype == image.dtype


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(protocol: int) -> None:
    array = np.empty(2, object)
    array[0], array[1] = counts(7), np.float64(0.25)
    content = header_of((2,), "|O") + pickle.dumps(array, protocol=protocol)

    read = read_npy(content, "a.npy")

    np.testing.assert_array_equal(read[0], array[0])


def test_the_names_of_older_numpy_are_read() -> None:
    array = np.empty(2, object)
    array[0], array[1] = counts(8), np.float64(0.25)
    body = pickle.dumps(array, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")

    read = read_npy(header_of((2,), "|O") + body, "a.npy")

    np.testing.assert_array_equal(read[0], array[0])


def test_a_hostile_pickle_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"^a\.npy .*asks for (posix|nt)\.system"):
        read_npy(pair(counts(9), Hostile(tmp_path / "marker")), "a.npy")


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadFileError):
        read_npy(pair(counts(9), Hostile(tmp_path / "marker")), "a.npy")

    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "value",
    [{1, 2}, functools.partial(int), np.dtype("f8"), np.datetime64("2020-01-01"), np.zeros(2, "U3"), np.ma.zeros(2)],
    ids=repr,
)
def test_what_is_no_number_or_array_is_refused(value: object) -> None:
    content = pair(counts(10), value)

    with pytest.raises(BadFileError, match=r"^a\.npy "):
        raise_unless_number(read_npy(content, "a.npy")[1])


def raise_unless_number(value: object) -> None:
    """Sets and other plain data may pass the reader; what needs them asks for a number."""
    if not isinstance(value, float | np.ndarray | np.generic):
        raise BadFileError("a.npy holds no number")


def test_a_text_that_is_encoded_again_and_again_is_refused() -> None:
    text = b"X" + (1 << 16).to_bytes(4, "little") + b"a" * (1 << 16) + b"q\x01"
    again = b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R0"

    with pytest.raises(BadFileError, match="makes more bytes than it holds"):
        read_npy(header_of((2,), "|O") + b"\x80\x02" + text + again * 600 + b".", "a.npy")


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93J\x00\x00\x00\x40\x85R.",  # numpy.ndarray(2**30)
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93J\x00\x00\x00\x40\x85\x81.",  # the same by its __new__
        b"\x80\x04K\x01r\xff\xff\xff\x7f.",  # a memo of 2**31 places
        b"\x80\x04\x8e\x00\x00\x00\x00\x01\x00\x00\x00abc.",  # 4 GiB of bytes that are not there
        b"cos\nsystem\n(S'true'\ntR.",
        b"(ios\nsystem\n.",
        b"\x82\x01.",
        b"Pmine\n.",
        b"\x80\x04",
        b"",
    ],
)
def test_a_crafted_pickle_is_refused(body: bytes) -> None:
    with pytest.raises(BadFileError, match=r"^a\.npy "):
        read_npy(header_of((2,), "|O") + body, "a.npy")


def test_a_pickled_type_cannot_pass_numbers_off_as_pointers() -> None:
    content = pair(counts(11), 0.5)
    # The last item of a type's state are its flags; 63 are those of a type of objects.
    tampered = content.replace(b"K\x00t\x94b", b"K\x3ft\x94b", 1)

    read = read_npy(tampered, "a.npy")[0]

    assert tampered != content
    assert not read.dtype.hasobject


@pytest.mark.parametrize("keep", [0, 5, 60, 130, -1])
@pytest.mark.parametrize("content", [npy(counts(12)), pair(counts(12), 0.5)], ids=["plain", "pickled"])
def test_a_truncated_file_is_named(content: bytes, keep: int) -> None:
    with pytest.raises(BadFileError, match=r"^a\.npy is no readable \.npy file"):
        read_npy(content[:keep], "a.npy")


@settings(max_examples=200, deadline=None)
@given(data=st.data(), content=st.sampled_from([npy(counts(1, 3)), pair(counts(1, 3), np.float64(0.5))]))
def test_whatever_is_damaged_is_read_or_refused(data: st.DataObject, content: bytes) -> None:
    changes = data.draw(st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255), max_size=4))
    damaged = bytes(changes.get(place, byte) for place, byte in enumerate(content))

    with contextlib.suppress(BadFileError):
        read_npy(damaged, "a.npy")


def test_a_header_that_declares_more_than_the_file_holds_is_refused() -> None:
    bomb = header_of((10**6, 10**6), "<f8") + bytes(64)

    with pytest.raises(BadFileError, match=r"declares 8000000000000 bytes of data, the file has 64"):
        read_npy(bomb, "a.npy")


def test_bytes_behind_the_data_are_refused() -> None:
    with pytest.raises(BadFileError, match="declares 288 bytes of data, the file has 289"):
        read_npy(npy(counts(13)) + b"\0", "a.npy")


def test_a_pickle_of_another_shape_than_declared_is_refused() -> None:
    content = pair(counts(14), 0.5).replace(b"'shape': (2,)", b"'shape': (3,)")

    with pytest.raises(BadFileError, match=r"not the array of objects \(3,\)"):
        read_npy(content, "a.npy")
