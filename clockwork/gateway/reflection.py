"""Answers gRPC's server reflection: the names of services, and the files that describe them.

The services are described in files without imports, each in a pool of its own; no file has extensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format

from clockwork.protocol import health_pb2, inference_pb2
from clockwork.protocol import reflection_pb2 as pb

V1, V1ALPHA = "grpc.reflection.v1", "grpc.reflection.v1alpha"


def _alpha() -> Any:
    """Return the file of reflection v1alpha, which is the file of v1 in another package."""
    text = text_format.MessageToString(
        descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    )
    file = descriptor_pb2.FileDescriptorProto()
    # In descriptors, names of types begin with a dot.
    text_format.Parse(text.replace(f'".{V1}.', f'".{V1ALPHA}.'), file)
    file.name, file.package = "reflection_v1alpha.proto", V1ALPHA
    return descriptor_pool.DescriptorPool().AddSerializedFile(file.SerializeToString())


FILES: Sequence[Any] = (inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, pb.DESCRIPTOR, _alpha())

SERVICES = sorted(service.full_name for file in FILES for service in file.services_by_name.values())
"""The services of the gateway, by their full names."""


def answer(request: Any) -> Any:
    """Return the ServerReflectionResponse to a ServerReflectionRequest; unknown names give an error in it."""
    response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
    kind = request.WhichOneof("message_request")
    found: Any = None
    if kind == "list_services":
        for name in SERVICES:
            response.list_services_response.service.add(name=name)
        return response
    if kind == "file_by_filename":
        found = next((file for file in FILES if file.name == request.file_by_filename), None)
    elif kind == "file_containing_symbol":
        found = _file_of(request.file_containing_symbol)
    elif kind == "all_extension_numbers_of_type":
        name = request.all_extension_numbers_of_type
        if _is_message(name):
            response.all_extension_numbers_response.base_type_name = name
            return response
    elif kind is None:
        return _failed(response, grpc.StatusCode.INVALID_ARGUMENT, "the request asks for nothing")
    if found is None:
        return _failed(response, grpc.StatusCode.NOT_FOUND, "not found")
    response.file_descriptor_response.file_descriptor_proto.append(found.serialized_pb)
    return response


def _failed(response: Any, code: grpc.StatusCode, text: str) -> Any:
    response.error_response.error_code = code.value[0]
    response.error_response.error_message = text
    return response


def _file_of(symbol: str) -> Any:
    """Return the file that declares a symbol of this full name; None if there is none."""
    parent, _, method = symbol.rpartition(".")
    for file in FILES:
        try:
            return file.pool.FindFileContainingSymbol(symbol)
        except KeyError:  # some of protobuf's implementations find no methods
            if any(
                parent == service.full_name and method in service.methods_by_name
                for service in file.services_by_name.values()
            ):
                return file
    return None


def _is_message(name: str) -> bool:
    for file in FILES:
        try:
            file.pool.FindMessageTypeByName(name)
        except KeyError:
            continue
        return True
    return False
