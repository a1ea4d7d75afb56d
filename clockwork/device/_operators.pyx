# cython: language_level=3
"""The operators of csrc/device/operators.h. This module's file is the library that ONNX Runtime loads them from."""

from libcpp.string cimport string

cdef extern from "device/images.h" namespace "clockwork::device" nogil:
    string c_load_jpeg "clockwork::device::load_jpeg"(const string& path)


def load_jpeg(bytes path):
    """Use this libjpeg. Returns why it cannot be used, or ""."""
    return c_load_jpeg(path).decode(errors="replace")
