"""Makes calls with NVIDIA's client, in a process of its own: it has its own copy of the protos.

`python triton_calls.py sync|aio HOST:PORT` reads calls from standard input, a JSON list of
`{"method", "arguments"}`, and writes what came back, a JSON list. The arguments `inputs` are lists
of `[name, datatype, nested list]`, `outputs` a list of names. Images come back as
`{"model_version", "id", "datatype", "images": nested list}`, errors as `{"error": [code, text]}`.
"""

import asyncio
import inspect
import json
import sys
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

CLIENTS: dict[str, ModuleType] = {"sync": tritonclient.grpc, "aio": tritonclient.grpc.aio}


def build_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    inputs = []
    for name, datatype, values in arguments.get("inputs", []):
        array = np.array(values, triton_to_np_dtype(datatype))
        inputs.append(tritonclient.grpc.InferInput(name, array.shape, datatype))
        inputs[-1].set_data_from_numpy(array)
    built = {**arguments}
    if "inputs" in arguments:
        built["inputs"] = inputs
    if "outputs" in arguments:
        built["outputs"] = list(map(tritonclient.grpc.InferRequestedOutput, arguments["outputs"]))
    return built


def describe(result: Any) -> Any:
    if not isinstance(result, tritonclient.grpc.InferResult):
        return result
    response = result.get_response()
    return {
        "model_version": response.model_version,
        "id": response.id,
        "datatype": result.get_output("images").datatype,
        "images": result.as_numpy("images").tolist(),
    }


async def call(client: Any, method: str, arguments: dict[str, Any]) -> Any:
    try:
        result = getattr(client, method)(**build_arguments(arguments))
        return describe(await result if inspect.isawaitable(result) else result)
    except InferenceServerException as error:
        return {"error": [error.status().removeprefix("StatusCode."), error.message()]}


async def main(kind: str, address: str) -> None:
    client = CLIENTS[kind].InferenceServerClient(address)
    calls = json.load(sys.stdin)
    results = [await call(client, entry["method"], entry["arguments"]) for entry in calls]
    closing = client.close()
    if inspect.isawaitable(closing):
        await closing
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
