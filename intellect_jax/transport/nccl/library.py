"""As much of NCCL, and of CUDA's driver, as a sender needs, by ctypes. Signatures: nccl.h of NCCL 2.x, cuda.h."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

UNIQUE_ID_BYTES = 128
DTYPES = {"F32": 7, "BF16": 9}  # ncclDataType_t
_SUM = 0  # ncclRedOp_t
_NON_BLOCKING = 1  # a stream that does not wait for the default one


class NcclError(Exception):
    """What NCCL or the driver said."""


class _UniqueId(ctypes.Structure):  # NCCL takes it by value
    _fields_ = [("internal", c_char * UNIQUE_ID_BYTES)]


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ncclGetVersion": (POINTER(c_int),),
    "ncclGetUniqueId": (POINTER(_UniqueId),),
    "ncclCommInitRank": (POINTER(c_void_p), c_int, _UniqueId, c_int),
    "ncclAllReduce": (c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclBroadcast": (c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclCommAbort": (c_void_p,),
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
}


class Library:
    """Both libraries, their errors raised. Raises NcclError where one cannot be loaded."""

    def __init__(self, nccl: str = "", cuda: str = "libcuda.so.1"):
        self._nccl, self._cuda = _load(nccl or packaged() or "libnccl.so.2"), _load(cuda)
        self._nccl.ncclGetLastError.restype = self._nccl.ncclGetErrorString.restype = c_char_p
        self._nccl.ncclGetLastError.argtypes = (c_void_p,)
        self._calls = {name: self._bound(name, kinds) for name, kinds in _SIGNATURES.items()}

    def __call__(self, name: str, *arguments: object) -> None:
        code = self._calls[name](*arguments)
        if code and name.startswith("nccl"):
            said = [self._nccl.ncclGetErrorString(code), self._nccl.ncclGetLastError(None)]
            raise NcclError(f"{name}: {': '.join(text.decode(errors='replace') for text in said if text)}")
        if code:
            raise NcclError(f"{name}: CUDA error {code}")

    def version(self) -> int:
        """Of NCCL, such as 22903: all ranks must have the same."""
        found = c_int()
        self("ncclGetVersion", byref(found))
        return found.value

    def unique_id(self) -> bytes:
        """A new one, of UNIQUE_ID_BYTES."""
        made = _UniqueId()
        self("ncclGetUniqueId", byref(made))
        return bytes(made)

    def _bound(self, name: str, kinds: tuple[Any, ...]) -> Callable[..., int]:
        function = getattr(self._nccl if name.startswith("nccl") else self._cuda, name)
        function.argtypes, function.restype = kinds, c_int
        return function


class Communicator:
    """Rank 0 of ``world``, on the GPU number ``ordinal`` of this process; the others must enter at the same time.

    Use it in the thread that makes it; only ``give_up`` may come from another one.
    """

    def __init__(self, library: Library, unique_id: bytes, world: int, ordinal: int):
        self._library = library
        self._lock, self._waiting = threading.Lock(), False
        device, context, self._stream, self._comm = c_int(), c_void_p(), c_void_p(), c_void_p()
        library("cuInit", 0)
        library("cuDeviceGet", byref(device), ordinal)
        library("cuDevicePrimaryCtxRetain", byref(context), device)  # the one that JAX works in
        library("cuCtxSetCurrent", context)
        library("cuStreamCreate", byref(self._stream), _NON_BLOCKING)
        library("ncclCommInitRank", byref(self._comm), world, _UniqueId.from_buffer_copy(unique_id), 0)

    def greet(self, scratch: int) -> None:
        """The one-element reduction of float32 that vLLM begins with, over one element of device memory."""
        self._library("ncclAllReduce", scratch, scratch, 1, DTYPES["F32"], _SUM, self._comm, self._stream)
        self.wait()

    def send(self, pointer: int, count: int, dtype: str) -> None:
        """Broadcasts elements that lie at a device address; they must stay there until ``wait`` returns."""
        self._library("ncclBroadcast", pointer, pointer, count, DTYPES[dtype], 0, self._comm, self._stream)

    def wait(self) -> None:
        """Until all has left for the others."""
        with self._lock:
            self._waiting = True
        try:
            self._library("cuStreamSynchronize", self._stream)
        finally:
            with self._lock:
                self._waiting = False

    def give_up(self) -> None:
        """Ends a ``wait``. A call into NCCL that does not return cannot be ended: what it uses would be freed."""
        with self._lock:
            if self._waiting:
                self._abort()

    def close(self) -> None:
        with self._lock:
            self._abort()

    def _abort(self) -> None:
        comm, self._comm = self._comm, c_void_p()
        if comm:
            self._library("ncclCommAbort", comm)


def packaged() -> str:
    """The library that jax[cuda12] and jax[cuda13] bring; empty where there is none."""
    try:
        spec = find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        spec = None
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    found = [path for folder in folders for path in Path(folder).glob("lib/libnccl.so.*")]
    return str(found[0]) if found else ""


def _load(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise NcclError(f"cannot load {name}: {error}") from error
