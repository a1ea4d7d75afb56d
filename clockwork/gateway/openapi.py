"""What the gateway's HTTP server offers, as an OpenAPI document. A test asks for everything that it says."""

from __future__ import annotations

from typing import Any

from clockwork.config import VERSION
from clockwork.gateway.service import TIMEOUT_US_MAX
from clockwork.gateway.tensors import STANDARD

Json = dict[str, Any]

_ANSWERS = {
    "400": "A request that is wrong; the error names the tensor, what was expected and what came.",
    "401": "The bearer token is missing or wrong.",
    "403": "The token is the clients', and this call takes the operator's; or shared memory, for a caller elsewhere.",
    "404": "No such model, version or path.",
    "405": "The path is there, this method is not.",
    "408": "The body took too long to come.",
    "413": "A request beyond the gateway's limits.",
    "422": "Refused, because the execution alone takes longer than the deadline allows: to try again is of no use.",
    "501": "A part of the protocol that is not here.",
    "503": "Refused, or the cluster cannot serve it now. Retry-After says when to try again.",
    "504": "The deadline passed.",
}


def document(*, with_token: bool) -> Json:
    """The whole document, OpenAPI 3.0."""
    body: Json = {
        "openapi": "3.0.3",
        "info": {
            "title": "Clockwork",
            "version": VERSION,
            "description": "The Open Inference Protocol (KServe V2), with Triton's extensions for binary tensors, "
            "model configuration, statistics, repositories and scheduling.",
        },
        "paths": _paths(),
        "components": {"schemas": _schemas(), "responses": _responses()},
    }
    if with_token:
        body["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        body["security"] = [{"token": []}]
    return body


def _paths() -> Json:
    paths: Json = {
        "/v2": {"get": _get("The server's name, version and extensions.", "Server")},
        "/v2/health/live": {"get": _get("Whether the gateway runs.", "Live") | {"security": []}},
        "/v2/health/ready": {
            "get": _get("Whether the cluster can serve.", "Ready", "503") | {"security": []}
        },
        "/v2/models": {"get": _get("The names of the models that can be asked.", "Models", "503", "504")},
        "/v2/models/stats": {"get": _get("Statistics of every model.", "Statistics", "503", "504")},
        "/v2/repository/index": {
            "post": _post("The models that are registered, with their states.", "IndexRequest", "Index")
        },
    }
    for action, summary in (
        ("load", "Have a registered model serve. Nothing to do where it does already."),
        ("unload", "Have a model serve nobody, and give its memory back, until it is loaded again."),
    ):
        path = f"/v2/repository/models/{{model}}/{action}"
        paths[path] = {
            "parameters": [_path_parameter("model", "A model's name.")],
            "post": _post(summary, "RepositoryRequest", "Empty", "403", "404"),
        }
    paths |= _memory_paths()
    named = [_path_parameter("model", "A model's name.")]
    versioned = [*named, _path_parameter("version", "A version's number.")]
    for prefix, parameters in (("", named), ("/versions/{version}", versioned)):
        base = f"/v2/models/{{model}}{prefix}"
        for rest, summary, schema in (
            ("", "The model's inputs and outputs.", "Model"),
            ("/ready", "Whether the model can serve.", "ModelReady"),
            ("/config", "The model's configuration, in Triton's form.", "Config"),
            ("/stats", "The model's statistics, in Triton's form.", "Statistics"),
        ):
            answers = ("400", "404", "503", "504") if rest == "/ready" else ("404", "503", "504")
            paths[base + rest] = {"parameters": parameters, "get": _get(summary, schema, *answers)}
        paths[f"{base}/infer"] = {"parameters": parameters, "post": _infer()}
    return paths


def _memory_paths() -> Json:
    """Of shared memory. CUDA's has the same calls, and never a region."""
    paths: Json = {}
    for kind, schema, refused in (
        ("system", "Regions", ("403", "501")),
        ("cuda", "NoRegions", ()),
    ):
        base = f"/v2/{kind}sharedmemory"
        one = f"{base}/region/{{region}}"
        named = [_path_parameter("region", "A region's name.")]
        registered = ("RegisterRegion", "Empty") if kind == "system" else ("EmptyRequest", "Empty")
        paths |= {
            f"{base}/status": {"get": _get("The caller's regions of shared memory.", schema, *refused)},
            f"{base}/unregister": {"post": _post("Forget all of the caller's regions.", "EmptyRequest", "Empty", *refused)},
            f"{one}/status": {"parameters": named, "get": _get("One region of the caller's.", schema, "404", *refused)},
            f"{one}/register": {
                "parameters": named,
                "post": _post("Make shared memory known under a name.", *registered, "403", "501"),
            },
            f"{one}/unregister": {
                "parameters": named, "post": _post("Forget a region.", "EmptyRequest", "Empty", *refused)
            },
        }  # fmt: skip
    return paths


def _infer() -> Json:
    """Its own, because of the binary form."""
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    operation = _post(
        "Run the model. As JSON; or as JSON of Inference-Header-Content-Length bytes and then the raw bytes of each "
        "tensor that has binary_data_size, in order; a tensor with shared_memory_region is in shared memory instead. The parameter timeout (microseconds) is the request's deadline.",
        "InferRequest", "InferResponse", "403", "404", "408", "413", "422", "501",
    )  # fmt: skip
    operation["parameters"] = [
        {
            "name": "X-Clockwork-Timeout-Us", "in": "header",
            "description": "The deadline, in microseconds from now; 0: the model's own.",
            "schema": {"type": "integer", "minimum": 0, "maximum": TIMEOUT_US_MAX},
        },
        {
            "name": "Inference-Header-Content-Length", "in": "header",
            "description": "How many bytes of the body are JSON; all, where it is missing. 0: the body is the raw "
            "bytes of the model's one input.",
            "schema": {"type": "integer", "minimum": 0},
        },
    ]  # fmt: skip
    operation["requestBody"]["content"] |= binary
    operation["requestBody"]["required"] = True
    operation["responses"]["200"]["content"] |= binary
    return operation


def _path_parameter(name: str, description: str) -> Json:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _get(summary: str, schema: str, *answers: str) -> Json:
    content = _content(schema)
    responses: Json = {"200": {"description": "As asked for.", "content": content}}
    for status in sorted({"401", "503", *answers}):
        responses[status] = {"$ref": f"#/components/responses/{status}"}
    return {"summary": summary, "responses": responses}


def _post(summary: str, request: str, schema: str, *answers: str) -> Json:
    return _get(summary, schema, "400", "408", "413", "503", "504", *answers) | {
        "requestBody": {"content": _content(request)}
    }


def _content(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _responses() -> Json:
    responses: Json = {
        status: {"description": text, "content": _content("Error")} for status, text in _ANSWERS.items()
    }
    whole: Json = {"schema": {"type": "integer", "minimum": 1}}
    responses["503"]["headers"] = {"Retry-After": whole | {"description": "Seconds."}}
    return responses


def _object(required: list[str], **properties: Any) -> Json:
    return {"type": "object", "required": required, "properties": properties}


def _list(items: Any) -> Json:
    return {"type": "array", "items": items}


def _schemas() -> Json:
    text: Json = {"type": "string"}
    flag: Json = {"type": "boolean"}
    count: Json = {"type": "integer", "minimum": 0}
    duration = _object(["count", "ns"], count=count, ns=count)
    phases = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    dimensions = _list({"type": "integer", "minimum": -1})
    shape = _list({"type": "integer", "minimum": 0, "maximum": (1 << 62) - 1}) | {"maxItems": 32}
    datatype: Json = {"type": "string", "enum": list(STANDARD)}
    tensor = _object(["name", "datatype", "shape"], name=text, datatype=text, shape=dimensions)
    config_tensor = _object(["name", "data_type", "dims"], name=text, data_type=text, dims=dimensions)
    memory: Json = {
        "shared_memory_region": text, "shared_memory_byte_size": count, "shared_memory_offset": count
    }  # fmt: skip
    data: Json = {
        "description": "The elements, row by row, flat or nested as the shape says.",
        "type": "array",
        "items": {},
    }
    return {
        "Error": _object(
            ["error", "reason"],
            error={"type": "string", "description": "A sentence for people."},
            reason={"type": "string", "description": "A word for programs."},
            tensor=text, expected=text, got=text,
            retry_after_us=count | {"description": "When the same request is likely to be answered."},
            feasible_timeout_us=count | {"description": "The least timeout that would have been enough."},
            request=count | {"description": "The request's number, for `clockwork explain`."},
        ),
        "Server": _object(["name", "version", "extensions"], name=text, version=text, extensions=_list(text)),
        "Live": _object(["live"], live=flag),
        "Ready": _object(["ready"], ready=flag),
        "ModelReady": _object(["name", "ready"], name=text, ready=flag),
        "Models": _object(["models"], models=_list(text)),
        "Empty": {"type": "object"},
        "Model": _object(
            ["name", "versions", "platform", "inputs", "outputs"],
            name=text, versions=_list(text), platform=text, inputs=_list(tensor), outputs=_list(tensor),
        ),
        "Config": _object(
            ["name", "platform", "backend", "max_batch_size", "input", "output"],
            name=text, platform=text, backend=text, max_batch_size=count, input=_list(config_tensor),
            output=_list(config_tensor),
        ),
        "Statistics": _object(
            ["model_stats"],
            model_stats=_list(_object(
                ["name", "version", "inference_count", "execution_count", "inference_stats"],
                name=text, version=text, last_inference=count, inference_count=count, execution_count=count,
                inference_stats=_object(list(phases), **dict.fromkeys(phases, duration)),
            )),
        ),
        "IndexRequest": _object([], ready=flag),
        "Index": _list(_object(["name", "version", "state"], name=text, version=text, state=text, reason=text)),
        "Regions": _list(_object(
            ["name", "key", "offset", "byte_size"], name=text, key=text, offset=count, byte_size=count
        )),
        "NoRegions": {"type": "array", "items": {}, "maxItems": 0},
        "EmptyRequest": {"type": "object"},
        "RegisterRegion": _object(
            ["key", "byte_size"],
            key={"type": "string", "minLength": 1, "description": "The name that shm_open() was given."},
            offset=count, byte_size=count,
        ),
        "RepositoryRequest": _object([], parameters=_object([], unload_dependents=flag)),
        "InferRequest": _object(
            ["inputs"],
            id=text,
            parameters=_object(
                [],
                timeout={"type": "integer", "minimum": 0, "maximum": TIMEOUT_US_MAX,
                         "description": "The deadline, in microseconds from now; 0: the model's own."},
                priority={"type": "integer", "minimum": 0, "maximum": 255,
                          "description": "1 is the highest, larger is lower, 0 the default."},
                binary_data_output=flag,
            ),
            inputs=_list(_object(
                ["name", "shape", "datatype"],
                name=text, shape=shape, datatype=datatype, data=data,
                parameters=_object([], binary_data_size=count, **memory),
            )),
            outputs=_list(_object(["name"], name=text, parameters=_object([], binary_data=flag, **memory))),
        ),
        "InferResponse": _object(
            ["model_name", "model_version", "outputs"],
            model_name=text, model_version=text, id=text,
            outputs=_list(_object(
                ["name", "datatype", "shape"],
                name=text, datatype=text, shape=dimensions, data=data,
                parameters=_object([], binary_data_size=count),
            )),
        ),
    }  # fmt: skip
