"""The OpenAPI document of the gateway's HTTP server. A test requests every operation that it describes."""

from __future__ import annotations

from typing import Any

from clockwork.config import VERSION
from clockwork.gateway.service import TIMEOUT_US_MAX
from clockwork.gateway.settings import StatusCodes
from clockwork.protocol.datatypes import STANDARD
from clockwork.wire.roles import HTTP, Right

Json = dict[str, Any]

_ANSWERS = {
    "400": "A request that is wrong; the error names the tensor, what was expected and what came.",
    "401": "The bearer token is missing or wrong.",
    "403": "The token is the clients', and this call takes the operator's; or shared memory, for a caller elsewhere; or "
    "a web page of another site.",
    "404": "No such model, version or region.",
    "408": "The body took too long to come.",
    "413": "A request beyond the gateway's limits.",
    "422": "Refused, because no device can serve it however idle: the execution alone takes longer than the deadline "
    "allows, or the model fits none. To try again is of no use.",
    "429": "Shed: it could not be in time, or the cluster or the gateway is overloaded. Retry-After says when to try again.",
    "500": "The model failed on this input, or the server has a defect.",
    "501": "A part of the protocol that is not here, or an encoding that is not taken.",
    "503": "Nobody can serve it now. Retry-After says when to try again.",
    "504": "The deadline passed.",
}

_SHED = {StatusCodes.MESH: "429", StatusCodes.TRITON: "503"}
"""The status of a request that is shed; any request may be shed."""


def document(with_token: bool, codes: StatusCodes) -> Json:
    """Return the document, in OpenAPI 3.0. with_token: whether calls need a token."""
    paths = _paths()
    used = set()
    for path, operations in paths.items():
        for method in {"get", "post"} & operations.keys():
            operation = operations[method]
            answers = _answers_of(path, method, with_token, codes)
            operation["responses"] |= {
                status: {"$ref": f"#/components/responses/{status}"} for status in sorted(answers)
            }
            used |= answers
    body: Json = {
        "openapi": "3.0.3",
        "info": {
            "title": "Clockwork",
            "version": VERSION,
            "description": "The Open Inference Protocol (KServe V2), with Triton's extensions for binary tensors, "
            "model configuration, statistics, repositories and scheduling.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "responses": _responses(used)},
    }
    if with_token:
        body["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        body["security"] = [{"token": []}]
    return body


def _answers_of(path: str, method: str, with_token: bool, codes: StatusCodes) -> set[str]:
    """Return the statuses other than 200 with which an operation may be answered."""
    words = path.split("/")
    found = {"400", _SHED[codes]}
    if HTTP[path] is not Right.OPEN:
        found |= {"401", "403"} if with_token else {"403"}
    if method == "post":  # the request has a body
        found |= {"408", "413", "501"}
    if words[2:3] in (["models"], ["repository"]):  # the gateway queries the controller
        found |= {"500", "503", "504"}
    if path == "/v2/health/ready":
        found.add("503")
    if words[2:3] == ["systemsharedmemory"]:  # shared memory may be off
        found.add("501")
    if "{model}" in words or ("{region}" in words and method == "get"):
        found.add("404")
    if words[-1] == "infer":
        found.add("422")
    return found


def _paths() -> Json:
    paths: Json = {
        "/v2": {"get": _get("The server's name, version and extensions.", "Server")},
        "/v2/health/live": {"get": _get("Whether the gateway runs.", "Live") | {"security": []}},
        "/v2/health/ready": {"get": _get("Whether the cluster can serve.", "Ready") | {"security": []}},
        "/v2/models": {"get": _get("The names of the models that can be asked.", "Models")},
        "/v2/models/stats": {"get": _get("Statistics of every model.", "Statistics")},
        "/v2/repository/index": {
            "post": _post("The models that are registered, with their states.", "IndexRequest", "Index")
        },
    }
    for action, body, summary in (
        (
            "load",
            "LoadRequest",
            "Have a registered model serve, or register its versions in a repository, with another configuration and files.",
        ),
        (
            "unload",
            "UnloadRequest",
            "Have a model serve nobody, and give its memory back, until it is loaded again.",
        ),
    ):
        path = f"/v2/repository/models/{{model}}/{action}"
        paths[path] = {
            "parameters": [_path_parameter("model", "A model's name.")],
            "post": _post(summary, body, "Empty"),
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
            paths[base + rest] = {"parameters": parameters, "get": _get(summary, schema)}
        paths[f"{base}/infer"] = {"parameters": parameters, "post": _infer()}
    return paths


def _memory_paths() -> Json:
    """Return the paths of shared memory. CUDA's has the same calls, and never a region."""
    paths: Json = {}
    for kind, schema in (("system", "Regions"), ("cuda", "NoRegions")):
        base = f"/v2/{kind}sharedmemory"
        region_path = f"{base}/region/{{region}}"
        named = [_path_parameter("region", "A region's name.")]
        registered = "RegisterRegion" if kind == "system" else "EmptyRequest"
        paths |= {
            f"{base}/status": {"get": _get("The caller's regions of shared memory.", schema)},
            f"{base}/unregister": {"post": _post("Forget all of the caller's regions.", "EmptyRequest", "Empty")},
            f"{region_path}/status": {"parameters": named, "get": _get("One region of the caller's.", schema)},
            f"{region_path}/register": {
                "parameters": named, "post": _post("Make shared memory known under a name.", registered, "Empty")
            },
            f"{region_path}/unregister": {
                "parameters": named, "post": _post("Forget a region.", "EmptyRequest", "Empty")
            },
        }  # fmt: skip
    return paths


def _infer() -> Json:
    """Return the inference operation, whose requests and answers also have a binary form."""
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    operation = _post(
        "Run the model. As JSON; or as JSON of Inference-Header-Content-Length bytes and then the raw bytes of each "
        "tensor that has binary_data_size, in order; a tensor with shared_memory_region is in shared memory instead. The parameter timeout (microseconds) is the request's deadline.",
        "InferRequest", "InferResponse",
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


def _get(summary: str, schema: str) -> Json:
    return {
        "summary": summary,
        "responses": {"200": {"description": "As asked for.", "content": _content(schema)}},
    }


def _post(summary: str, request: str, schema: str) -> Json:
    return _get(summary, schema) | {"requestBody": {"content": _content(request)}}


def _content(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _responses(used: set[str]) -> Json:
    responses: Json = {
        status: {"description": _ANSWERS[status], "content": _content("Error")} for status in sorted(used)
    }
    whole: Json = {"schema": {"type": "integer", "minimum": 1}}
    for status in {"429", "503"} & used:
        responses[status]["headers"] = {"Retry-After": whole | {"description": "Seconds."}}
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
    optional = flag | {"description": "Whether a request may leave the input out. Absent: it may not."}
    described = _object(
        ["name", "datatype", "shape"], name=text, datatype=text, shape=dimensions, optional=optional
    )
    config_tensor = _object(
        ["name", "data_type", "dims"], name=text, data_type=text, dims=dimensions, optional=optional
    )
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
            name=text, versions=_list(text), platform=text, inputs=_list(described), outputs=_list(tensor),
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
        "UnloadRequest": _object([], parameters=_object([], unload_dependents=flag)),
        "LoadRequest": _object([], parameters=_object(
            [], config={"type": "string", "description": "A configuration, in JSON."}
        ) | {"additionalProperties": {"type": "string", "description": "file:PATH: a file's content, in base64."}}),
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
            outputs=_list(_object(
                ["name"], name=text,
                parameters=_object(
                    [], binary_data=flag, **memory,
                    classification={"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1,
                                    "description": "How many of the highest values are wanted; 0: all, as numbers."},
                ),
            )),
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
