"""A gRPC client that nobody here wrote learns the service by reflection and calls it."""

import asyncio
import base64
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SERVICE = "ganserve.v1.ImageGenerationService"


async def call(address: str, method: str, request: dict[str, Any]) -> tuple[int, str, str]:
    """Call by `buf curl`; return its exit code, output and errors."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("needs buf (the extra `dev`)")
    process = await asyncio.create_subprocess_exec(
        *(buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
        *("--data", json.dumps(request), f"http://{address}/{method}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_it_lists_models_and_gets_the_images_of_seeds(repository, running_server):
    async with running_server(repository) as server:
        code, output, errors = await call(server.address, f"{SERVICE}/ListModels", {})
        assert code == 0, errors
        (model,) = json.loads(output)["models"]
        assert (model["name"], model["state"]) == ("tiny", "MODEL_STATE_READY")
        request = {"seeds": {"values": [0, 2**64 - 1]}}
        code, output, errors = await call(server.address, f"{SERVICE}/GenerateImages", request)
        assert code == 0, errors
    reply = json.loads(output)
    assert reply["seeds"] == ["0", str(2**64 - 1)]
    assert reply["mediaType"] == "image/png"
    for content in reply["images"]:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.size == (4, 4)


async def test_it_reads_errors_with_their_details(repository, running_server):
    async with running_server(repository) as server:
        request = {"seeds": {"values": [1]}, "truncation": 7}
        code, _, errors = await call(server.address, f"{SERVICE}/GenerateImages", request)
    error = json.loads(errors)
    assert code != 0
    assert error["code"] == "invalid_argument"
    assert "truncation" in error["message"]
    (detail,) = error["details"]
    assert detail["type"] == "google.rpc.BadRequest"


async def test_it_sees_health(repository, running_server):
    async with running_server(repository) as server:
        request = {"service": "tiny"}
        code, output, errors = await call(server.address, "grpc.health.v1.Health/Check", request)
    assert code == 0, errors
    assert json.loads(output) == {"status": "SERVING"}
