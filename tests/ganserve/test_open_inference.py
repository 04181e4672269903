"""The Open Inference Protocol, by the generated stub and by NVIDIA's own clients."""

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status

from ganserve.inference.v2 import open_inference_pb2 as pb
from ganserve.inference.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from ganserve.latents import draw_latents
from ganserve.v1 import image_generation_pb2 as our_pb
from tests.ganserve.conftest import connected, failure, metric
from tests.ganserve.tiny import publish, reveal_pixels, write_artifact

ROOT = Path(__file__).resolve().parents[2]
CODES = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
DTYPES = {"UINT64": "<u8", "FP32": "<f4", "INT64": "<i8"}


def inference(*tensors, raw=True, outputs=(), parameters=None, **fields):
    """A request of tensors `(name, datatype, values)`."""
    request = pb.ModelInferRequest(**{"model_name": "tiny"} | fields)
    for name, datatype, values in tensors:
        array = np.array(values, DTYPES[datatype])
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            request.raw_input_contents.append(array.tobytes())
        else:
            contents = f"{'fp32' if datatype == 'FP32' else datatype.lower()}_contents"
            getattr(tensor.contents, contents).extend(array.ravel().tolist())
    for name in outputs:
        request.outputs.add(name=name)
    for name, value in (parameters or {}).items():
        kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


def seeds(*values):
    return ("seeds", "UINT64", values)


def latents_of(*values, latent_dim=4):
    return draw_latents(np.array(values, np.uint64), latent_dim)


def images_of(response):
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("images", "UINT8")
    (content,) = response.raw_output_contents
    return np.frombuffer(content, np.uint8).reshape(output.shape)


@contextlib.asynccontextmanager
async def inferring(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield GRPCInferenceServiceStub(channel)


async def details_of(error, kind):
    detail = kind()
    assert rpc_status.from_call(error).details[0].Unpack(detail)
    return detail


async def sum_of_codes(server):
    """How many calls of this service were started, and how many handled, by code."""
    service = {"grpc_service": "inference.GRPCInferenceService"}
    started = await metric(server, "grpc_server_started_total", **service)
    handled = {
        code: await metric(server, "grpc_server_handled_total", grpc_code=code, **service)
        for code in CODES
    }
    assert started == await metric(server, "grpc_server_handled_total", **service)
    return started, {code: count for code, count in handled.items() if count}


class TestModelInfer:
    @pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
    async def test_seeds_become_images(self, repository, running_server, raw):
        request = inference(seeds(7, 0, 2**64 - 1), raw=raw, id="a call", outputs=["images"])
        async with running_server(repository) as server, inferring(server) as stub:
            response = await stub.ModelInfer(request)
        assert (images_of(response) == reveal_pixels(latents_of(7, 0, 2**64 - 1))).all()
        assert (response.model_name, response.model_version) == ("tiny", "1")
        assert response.id == "a call"

    @pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
    async def test_latents_become_images(self, repository, running_server, raw):
        latents = latents_of(3, 4)
        request = inference(("latents", "FP32", latents), raw=raw)
        async with running_server(repository) as server, inferring(server) as stub:
            response = await stub.ModelInfer(request)
        assert (images_of(response) == reveal_pixels(latents)).all()

    @pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
    async def test_a_conditional_model_takes_labels(self, tmp_path, running_server, raw):
        write_artifact(tmp_path, class_names=["cat", "dog"])
        request = inference(("labels", "INT64", [1, 0]), seeds(1, 2), raw=raw)
        async with running_server(tmp_path) as server, inferring(server) as stub:
            response = await stub.ModelInfer(request)
        assert (images_of(response) == reveal_pixels(latents_of(1, 2), np.array([1, 0]))).all()

    @pytest.mark.parametrize(
        "truncation", [None, 0.7, 1, 2.0**-149], ids=["none", "double", "integer", "smallest"]
    )
    async def test_the_pixels_are_those_of_our_own_call_bit_for_bit(
        self, tmp_path, running_server, truncation
    ):
        write_artifact(tmp_path, network="convolutional")
        parameters = {} if truncation is None else {"truncation": truncation}
        request = inference(seeds(*range(40)), parameters=parameters)
        ours = our_pb.GenerateImagesRequest(
            seeds=our_pb.Seeds(values=range(40)),
            format=our_pb.IMAGE_FORMAT_RAW,
            truncation=truncation,
        )
        async with (
            running_server(tmp_path) as server,
            inferring(server) as stub,
            connected(server) as our_stub,
        ):
            theirs, own = await asyncio.gather(
                stub.ModelInfer(request), our_stub.GenerateImages(ours)
            )
        assert theirs.raw_output_contents[0] == own.pixels
        assert list(theirs.outputs[0].shape) == [40, own.height, own.width, own.channels]

    async def test_a_version_can_be_pinned(self, repository, running_server):
        async with running_server(repository) as server, inferring(server) as stub:
            assert (await stub.ModelInfer(inference(seeds(1), model_version="1"))).model_version
            error = await failure(stub.ModelInfer(inference(seeds(1), model_version="7")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "'tiny'" in error.details()
        assert "7" in error.details()

    async def test_what_clients_send_along_is_tolerated(self, repository, running_server):
        request = inference(
            seeds(1),
            outputs=["images"],
            parameters={
                "binary_data_output": True,
                "priority": 1,
                "timeout": 0,
                "triton_enable_empty_final_response": True,
            },
        )
        request.inputs[0].parameters["binary_data_size"].int64_param = 8
        request.outputs[0].parameters["binary_data"].bool_param = True
        async with running_server(repository) as server, inferring(server) as stub:
            response = await stub.ModelInfer(request)
        assert (images_of(response) == reveal_pixels(latents_of(1))).all()

    async def test_without_a_name_the_only_model_is_meant(self, repository, running_server):
        async with running_server(repository) as server, inferring(server) as stub:
            response = await stub.ModelInfer(inference(seeds(1), model_name=""))
        assert response.model_name == "tiny"


def _with(change: Callable[[pb.ModelInferRequest], Any], **settings: Any) -> pb.ModelInferRequest:
    request = inference(seeds(1, 2), **settings)
    change(request)
    return request


def _reshaped(request, *sizes):
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(sizes)
    return request


BAD = [
    pytest.param(inference(), "inputs", "got none", id="no-input"),
    pytest.param(
        inference(seeds(1), ("latents", "FP32", latents_of(1))),
        "inputs",
        "expected one of seeds and latents, got seeds and latents",
        id="seeds-and-latents",
    ),
    pytest.param(inference(seeds(1), seeds(1)), "inputs[1].name", "again", id="seeds-twice"),
    pytest.param(inference(("z", "FP32", [1.0])), "inputs[0].name", "got 'z'", id="unknown-input"),
    pytest.param(
        inference(("seeds", "INT64", [1])), "inputs.seeds.datatype", "UINT64", id="signed-seeds"
    ),
    pytest.param(
        inference(("latents", "INT64", [[1, 2, 3, 4]])),
        "inputs.latents.datatype",
        "expected FP32, got 'INT64'",
        id="integer-latents",
    ),
    pytest.param(inference(seeds()), "inputs.seeds.shape", "got 0", id="no-seeds"),
    pytest.param(
        inference(seeds(*range(9))), "inputs.seeds.shape", "expected 1 to 8", id="too-many-seeds"
    ),
    pytest.param(
        _reshaped(inference(seeds(1)), 2**62), "inputs.seeds.shape", "got 46", id="huge-count"
    ),
    pytest.param(
        _reshaped(inference(("latents", "FP32", latents_of(1))), 2**62, 4),
        "inputs.latents.shape",
        "expected 1 to 8 rows",
        id="huge-rows",
    ),
    pytest.param(
        _reshaped(inference(seeds(1)), -1), "inputs.seeds.shape", "got -1", id="negative-count"
    ),
    pytest.param(
        _reshaped(inference(seeds(1)), 1, 1), "inputs.seeds.shape", "[n], got [1, 1]", id="2d-seeds"
    ),
    pytest.param(_reshaped(inference(seeds(1))), "inputs.seeds.shape", "got []", id="no-shape"),
    pytest.param(
        _reshaped(inference(seeds(1)), *[1] * 1000),
        "inputs.seeds.shape",
        "got 1000 dimensions",
        id="a-thousand-dimensions",
    ),
    pytest.param(
        inference(("latents", "FP32", [[1, 2, 3]])),
        "inputs.latents.shape",
        "expected [n, 4], got [1, 3]",
        id="other-latent-dim",
    ),
    pytest.param(
        inference(("latents", "FP32", [1, 2, 3, 4])), "inputs.latents.shape", "[n, 4]", id="flat"
    ),
    pytest.param(
        inference(("latents", "FP32", [[1, 2, np.nan, 4]])),
        "inputs.latents",
        "got nan at 2",
        id="nan",
    ),
    pytest.param(
        _with(lambda r: r.raw_input_contents.__setitem__(0, b"x" * 15)),
        "raw_input_contents[0]",
        "expected 16 bytes, as the shape of seeds says, got 15",
        id="truncated-raw",
    ),
    pytest.param(
        _with(lambda r: r.raw_input_contents.__setitem__(0, b"x" * 17)),
        "raw_input_contents[0]",
        "got 17",
        id="too-much-raw",
    ),
    pytest.param(
        _with(lambda r: r.raw_input_contents.append(b"")),
        "raw_input_contents",
        "expected none or 1, one for each input, got 2",
        id="more-raw-than-inputs",
    ),
    pytest.param(
        _with(lambda r: r.inputs[0].contents.uint64_contents.extend([1, 2])),
        "inputs.seeds.contents",
        "beside raw_input_contents",
        id="raw-and-typed",
    ),
    pytest.param(
        _with(lambda r: r.inputs[0].contents.uint64_contents.append(3), raw=False),
        "inputs.seeds.contents.uint64_contents",
        "expected 2 numbers, as the shape says, got 3",
        id="more-typed-than-the-shape",
    ),
    pytest.param(
        _with(lambda r: r.inputs[0].contents.int64_contents.append(3), raw=False),
        "inputs.seeds.contents",
        "expected uint64_contents, got int64_contents",
        id="typed-otherwise",
    ),
    pytest.param(
        _with(lambda r: r.ClearField("raw_input_contents")),
        "inputs.seeds.contents.uint64_contents",
        "got 0",
        id="no-contents",
    ),
    pytest.param(
        inference(seeds(1), ("labels", "INT64", [0])),
        "inputs.labels",
        "not conditional",
        id="labels",
    ),
    pytest.param(
        inference(seeds(1), outputs=["pixels"]), "outputs[0].name", "'pixels'", id="unknown-output"
    ),
    pytest.param(
        inference(seeds(1), outputs=["images"] * 2), "outputs[1].name", "once", id="output-twice"
    ),
    pytest.param(
        _with(
            lambda r: r.outputs[0].parameters["classification"].__setattr__("int64_param", 3),
            outputs=["images"],
        ),
        "outputs[0].parameters",
        "expected none, got 'classification'",
        id="classification",
    ),
    pytest.param(
        _with(
            lambda r: (
                r.inputs[0].parameters["shared_memory_region"].__setattr__("string_param", "a")
            )
        ),
        "inputs.seeds.parameters",
        "expected none, got 'shared_memory_region'",
        id="shared-memory",
    ),
    pytest.param(
        inference(seeds(1), parameters={"truncaton": 0.5}),
        "parameters",
        "expected only truncation, timeout, got 'truncaton'",
        id="misspelt-parameter",
    ),
    *(
        pytest.param(
            inference(seeds(1), parameters={"truncation": value}),
            "parameters.truncation",
            text,
            id=id_,
        )
        for value, text, id_ in [
            (0.0, "got 0", "truncation-0"),
            (1.5, "got 1.5", "truncation-1.5"),
            (1e300, "got 1e+300", "truncation-beyond-float32"),
            (1e-300, "got 0", "truncation-0-in-float32"),
            (float("nan"), "got nan", "truncation-nan"),
            ("0.5", "expected a number, got string_param", "truncation-text"),
            (True, "expected a number, got bool_param", "truncation-bool"),
        ]
    ),
    pytest.param(
        inference(seeds(1), parameters={"timeout": -1}),
        "parameters.timeout",
        "got -1",
        id="timeout",
    ),
    pytest.param(
        inference(seeds(1), model_version="first"), "model_version", "'first'", id="version"
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(("request_", "field", "text"), BAD)
    async def test_a_bad_field_is_named(self, repository, running_server, request_, field, text):
        settings = {"max_images_per_request": 8}
        async with running_server(repository, **settings) as server, inferring(server) as stub:
            error = await failure(stub.ModelInfer(request_))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            (violation,) = (await details_of(error, BadRequest)).field_violations
            assert violation.field == field
            assert text in violation.description
            assert error.details() == f"{field}: {violation.description}"
            assert await sum_of_codes(server) == (1, {"INVALID_ARGUMENT": 1})
            assert await metric(server, "ganserve_batch_images_count") == 0

    @pytest.mark.parametrize(
        ("tensors", "field", "text"),
        [
            pytest.param((seeds(1, 2),), "inputs.labels", "expected 2", id="none"),
            pytest.param(
                (seeds(1, 2), ("labels", "INT64", [1])), "inputs.labels.shape", "[2]", id="too-few"
            ),
            pytest.param(
                (seeds(1, 2), ("labels", "INT64", [1, 2])), "inputs.labels", "got 2", id="unknown"
            ),
            pytest.param(
                (seeds(1, 2), ("labels", "INT64", [-1, 0])),
                "inputs.labels",
                "got -1",
                id="negative",
            ),
            pytest.param(
                (seeds(1, 2), ("labels", "UINT64", [0, 0])),
                "inputs.labels.datatype",
                "INT64",
                id="unsigned",
            ),
        ],
    )
    async def test_bad_labels_are_named(self, tmp_path, running_server, tensors, field, text):
        write_artifact(tmp_path, class_names=["cat", "dog"])
        async with running_server(tmp_path) as server, inferring(server) as stub:
            error = await failure(stub.ModelInfer(inference(*tensors)))
        (violation,) = (await details_of(error, BadRequest)).field_violations
        assert violation.field == field
        assert text in violation.description

    async def test_more_than_one_message_can_hold_is_refused(self, tmp_path, running_server):
        write_artifact(tmp_path, height=256, width=256)
        settings = {"max_images_per_request": 10_922, "queue_size": 10_922}
        async with running_server(tmp_path, **settings) as server, inferring(server) as stub:
            error = await failure(stub.ModelInfer(inference(seeds(*range(10_922)))))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "inputs: expected at most 10921 images" in error.details()

    async def test_an_unknown_model_is_answered_with_those_there_are(
        self, repository, running_server
    ):
        write_artifact(repository, "cats")
        async with running_server(repository) as server, inferring(server) as stub:
            for call in (
                stub.ModelInfer(inference(seeds(1), model_name="dogs")),
                stub.ModelMetadata(pb.ModelMetadataRequest(name="dogs")),
                stub.ModelConfig(pb.ModelConfigRequest(name="dogs")),
            ):
                error = await failure(call)
                assert error.code() is grpc.StatusCode.NOT_FOUND
                assert error.details() == "model 'dogs': expected one of cats, tiny"

    async def test_a_full_queue_refuses_and_says_when_to_try_again(self, tmp_path, running_server):
        write_artifact(tmp_path)
        # The first two fill the queue and wait for a batch that it has no room to complete.
        settings = {"queue_size": 32, "max_images_per_request": 16, "instances": 1}
        settings |= {"max_batch_size": 64, "max_wait_seconds": 1}
        async with running_server(tmp_path, **settings) as server, inferring(server) as stub:
            calls = [stub.ModelInfer(inference(seeds(*range(16)))) for _ in range(20)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            refused = [error for error in outcomes if isinstance(error, grpc.aio.AioRpcError)]
            answered = len(outcomes) - len(refused)
            assert answered >= 2
            for error in refused:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                delay = (await details_of(error, RetryInfo)).retry_delay
                assert isinstance(delay, Duration)
                assert delay.ToNanoseconds() > 0
            counts = {"OK": answered, "RESOURCE_EXHAUSTED": len(refused)}
            assert await sum_of_codes(server) == (20, counts)
            assert await metric(server, "ganserve_images_total") == 16 * answered

    @pytest.mark.parametrize("by", ["deadline", "parameter"])
    async def test_a_call_whose_time_is_up_never_reaches_the_model(
        self, tmp_path, running_server, by
    ):
        write_artifact(tmp_path)
        # The only image waits for company longer than its caller waits for it.
        settings = {"max_wait_seconds": 1, "instances": 1}
        parameters = {"timeout": 100_000} if by == "parameter" else {}
        async with running_server(tmp_path, **settings) as server, inferring(server) as stub:
            call = stub.ModelInfer(
                inference(seeds(1), parameters=parameters),
                timeout=0.1 if by == "deadline" else 30,
            )
            assert (await failure(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            async with asyncio.timeout(20):
                abandoned = {"reason": "deadline"}
                while not await metric(server, "ganserve_abandoned_images_total", **abandoned):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert await metric(server, "ganserve_batch_images_count") == 0

    async def test_a_timeout_lengthens_no_call_beyond_what_the_server_imposes(
        self, repository, running_server
    ):
        settings = {"max_wait_seconds": 30, "deadline_seconds": 0.2}
        async with running_server(repository, **settings) as server, inferring(server) as stub:
            an_hour = {"timeout": 3_600_000_000}
            error = await failure(stub.ModelInfer(inference(seeds(1), parameters=an_hour)))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "longer than 0.2 s" in error.details()
            # Its time was up: the caller, who waited on, has not left.
            name = "ganserve_abandoned_images_total"
            assert await metric(server, name, reason="deadline") == 1
            assert await metric(server, name, reason="cancelled") == 0

    async def test_draining_is_seen_and_new_calls_are_refused_at_its_end(
        self, repository, running_server
    ):
        async with running_server(repository) as server, inferring(server) as stub:
            assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
            draining = asyncio.ensure_future(server.drain(60))
            await asyncio.sleep(0)
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert images_of(await stub.ModelInfer(inference(seeds(1)))).shape == (1, 4, 4, 3)
            server.stop_now.set()
            await draining
            error = await failure(stub.ModelInfer(inference(seeds(1))))
        assert error.code() is grpc.StatusCode.UNAVAILABLE

    async def test_other_extensions_are_unimplemented(self, repository, running_server):
        async with (
            running_server(repository) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            for method in ("ModelStatistics", "ModelStreamInfer", "SystemSharedMemoryStatus"):
                call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
                assert (await failure(call(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


class TestDescriptions:
    async def test_the_server_names_itself(self, repository, running_server):
        async with running_server(repository) as server, inferring(server) as stub:
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            metadata = await stub.ServerMetadata(pb.ServerMetadataRequest())
        assert (metadata.name, metadata.version) == ("ganserve", installed_version("ganserve"))
        assert list(metadata.extensions) == ["model_configuration"]

    async def test_a_model_says_what_it_takes(self, tmp_path, running_server):
        write_artifact(tmp_path, class_names=["cat", "dog"], latent_dim=6, channels=1)
        request = pb.ModelMetadataRequest(name="tiny")
        async with running_server(tmp_path) as server, inferring(server) as stub:
            metadata = await stub.ModelMetadata(request)
        assert (metadata.name, list(metadata.versions)) == ("tiny", ["1"])
        tensors = [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs]
        assert tensors == [
            ("seeds", "UINT64", [-1]),
            ("latents", "FP32", [-1, 6]),
            ("labels", "INT64", [-1]),
        ]
        (output,) = metadata.outputs
        assert (output.name, output.datatype) == ("images", "UINT8")
        assert list(output.shape) == [-1, 4, 4, 1]

    async def test_the_configuration_agrees_with_the_metadata(self, repository, running_server):
        async with running_server(repository) as server, inferring(server) as stub:
            metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny", version="1"))
            request = pb.ModelConfigRequest(name="tiny", version="1")
            config = (await stub.ModelConfig(request)).config
        assert (config.name, config.platform) == (metadata.name, metadata.platform)
        assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
        assert config.max_batch_size == 0  # the sizes include the batch
        for described, configured in [
            *zip(metadata.inputs, config.input, strict=True),
            *zip(metadata.outputs, config.output, strict=True),
        ]:
            assert configured.name == described.name
            assert (
                configured.data_type
                == pb.ModelConfigResponse()
                .config.input.add(data_type=f"TYPE_{described.datatype}")
                .data_type
            )
            assert configured.dims == described.shape
        assert [tensor.optional for tensor in config.input] == [True, True]  # either of the two

    @pytest.mark.parametrize(
        ("settings", "versions", "policy"),
        [
            pytest.param({}, ["2"], {"latest": {"num_versions": 1}}, id="latest"),
            pytest.param({"version_policy": "all"}, ["2", "1"], {"all": {}}, id="all"),
            pytest.param(
                {"version_policy": "specific", "versions": "tiny:1"},
                ["1"],
                {"specific": {"versions": ["1"]}},
                id="specific",
            ),
        ],
    )
    async def test_versions_are_those_of_the_policy(
        self, repository, running_server, settings, versions, policy
    ):
        write_artifact(repository, version=2)
        publish(repository, "tiny", 3, b"rubbish")
        async with running_server(repository, **settings) as server, inferring(server) as stub:
            metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
            config = (await stub.ModelConfig(pb.ModelConfigRequest(name="tiny"))).config
            for version in versions:
                response = await stub.ModelInfer(inference(seeds(1), model_version=version))
                assert response.model_version == version
        assert list(metadata.versions) == versions
        assert MessageToDict(config.version_policy, preserving_proto_field_name=True) == policy

    async def test_readiness_is_that_of_the_model_and_version(self, repository, running_server):
        publish(repository, "broken", 1, b"rubbish")
        async with running_server(repository) as server, inferring(server) as stub:

            async def is_ready(name, version=""):
                request = pb.ModelReadyRequest(name=name, version=version)
                return (await stub.ModelReady(request)).ready

            assert await is_ready("tiny")
            assert await is_ready("tiny", "1")
            assert not await is_ready("tiny", "2")
            assert not await is_ready("broken")
            assert not await is_ready("unknown")
            error = await failure(stub.ModelMetadata(pb.ModelMetadataRequest(name="broken")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "'broken'" in error.details()

    @pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig"])
    async def test_a_missing_name_is_told_by_its_field(self, method, repository, running_server):
        write_artifact(repository, "other")
        request = getattr(pb, f"{method}Request")()
        async with running_server(repository) as server, inferring(server) as stub:
            error = await failure(getattr(stub, method)(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "name: expected one of other, tiny, got none"

    async def test_a_call_that_comes_while_the_first_model_loads_is_answered(
        self, repository, running_server, slow_loading
    ):
        async with (
            running_server(repository, until_ready=False) as server,
            inferring(server) as stub,
        ):
            await slow_loading.has_begun()
            call = stub.ModelInfer(inference(seeds(7)))
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready
            slow_loading.end()
            assert len(images_of(await call)) == 1

    async def test_a_server_without_models_is_live_and_not_ready(self, tmp_path, running_server):
        async with (
            running_server(tmp_path, until_ready=False) as server,
            inferring(server) as stub,
        ):
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready


async def call_triton(kind: str, address: str, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Make calls `(method, arguments)` with NVIDIA's client; see triton_calls.py."""
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("needs tritonclient[grpc] (the extra `dev`)")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "tests/ganserve/triton_calls.py"), kind, address),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    entries = [{"method": method, "arguments": arguments} for method, arguments in calls]
    output, errors = await process.communicate(json.dumps(entries).encode())
    assert process.returncode == 0, errors.decode()
    results: list[Any] = json.loads(output)
    return results


def infer(*inputs, **arguments):
    return "infer", {"model_name": "tiny", "inputs": inputs} | arguments


@pytest.mark.parametrize("kind", ["sync", "aio"])
class TestTritonClient:
    async def test_it_makes_the_calls_of_a_load_test(self, repository, running_server, kind):
        """The sequence of perf_analyzer, which is not on every machine."""
        values = [5, 2**64 - 1]
        async with running_server(repository) as server:
            live, ready, model_ready, metadata, model, config, *inferred = await call_triton(
                kind,
                server.address,
                ("is_server_live", {}),
                ("is_server_ready", {}),
                ("is_model_ready", {"model_name": "tiny"}),
                ("get_server_metadata", {"as_json": True}),
                ("get_model_metadata", {"model_name": "tiny", "as_json": True}),
                ("get_model_config", {"model_name": "tiny", "as_json": True}),
                *[infer(["seeds", "UINT64", values], request_id=str(i)) for i in range(5)],
            )
            assert await sum_of_codes(server) == (11, {"OK": 11})
            assert await metric(server, "ganserve_images_total") == 10
            assert await metric(server, "ganserve_encode_seconds_count", format="raw") == 5
            assert await metric(server, "ganserve_encode_seconds_sum", format="raw") == 0
        assert (live, ready, model_ready) == (True, True, True)
        assert metadata["name"] == "ganserve"
        assert [tensor["name"] for tensor in model["inputs"]] == ["seeds", "latents"]
        assert config["config"]["version_policy"] == {"latest": {"num_versions": 1}}
        assert config["config"]["output"] == [
            {"name": "images", "data_type": "TYPE_UINT8", "dims": ["-1", "4", "4", "3"]}
        ]
        expected = reveal_pixels(latents_of(*values)).tolist()
        for index, result in enumerate(inferred):
            assert result == {
                "model_version": "1",
                "id": str(index),
                "datatype": "UINT8",
                "images": expected,
            }

    async def test_it_sends_latents_labels_and_parameters(self, tmp_path, running_server, kind):
        write_artifact(tmp_path, class_names=["cat", "dog"])
        latents = latents_of(3, 4)
        async with running_server(tmp_path) as server:
            (result,) = await call_triton(
                kind,
                server.address,
                infer(
                    ["latents", "FP32", latents.tolist()],
                    ["labels", "INT64", [1, 0]],
                    model_version="1",
                    outputs=["images"],
                    parameters={"truncation": 0.5},
                    priority=1,
                    timeout=20_000_000,
                ),
            )
        expected = reveal_pixels(latents * np.float32(0.5), np.array([1, 0]))
        assert result["images"] == expected.tolist()

    async def test_it_reads_the_errors(self, repository, running_server, kind):
        one_seed, row = ["seeds", "UINT64", [1]], [[0.0, 0.0, 0.0, 0.0]]
        bad = {
            "NOT_FOUND": [
                (infer(one_seed, model_name="dogs"), "model 'dogs': expected one of tiny"),
                (infer(one_seed, model_version="7"), "model 'tiny' version 7"),
            ],
            "INVALID_ARGUMENT": [
                (infer(), "inputs: "),
                (infer(one_seed, ["latents", "FP32", row]), "inputs: "),
                (infer(["seeds", "INT64", [1]]), "inputs.seeds.datatype: "),
                (infer(["seeds", "UINT64", [[1]]]), "inputs.seeds.shape: "),
                (infer(["seeds", "UINT64", list(range(513))]), "inputs.seeds.shape: "),
                (infer(["latents", "FP32", [[1.0]]]), "inputs.latents.shape: "),
                (infer(one_seed, ["labels", "INT64", [0]]), "inputs.labels: "),
                (infer(one_seed, outputs=["pixels"]), "outputs[0].name: "),
                (infer(one_seed, parameters={"truncation": 7.0}), "parameters.truncation: "),
            ],
            "UNIMPLEMENTED": [(("get_inference_statistics", {"model_name": "tiny"}), "")],
        }
        expected = [(code, text) for code, calls in bad.items() for _, text in calls]
        calls = [call for calls in bad.values() for call, _ in calls]
        async with running_server(repository) as server:
            results = await call_triton(kind, server.address, *calls)
            assert await sum_of_codes(server) == (11, {"NOT_FOUND": 2, "INVALID_ARGUMENT": 9})
            assert await metric(server, "ganserve_images_total") == 0
        for result, (code, text) in zip(results, expected, strict=True):
            assert result["error"][0] == code
            assert result["error"][1].startswith(text)


@pytest.mark.parametrize("flags", [(), ("--async",), ("-x", "1")], ids=["sync", "async", "pinned"])
async def test_perf_analyzer_runs_with_the_example_data(repository, running_server, flags):
    program = shutil.which("perf_analyzer")
    if program is None:
        pytest.skip("needs NVIDIA's perf_analyzer on PATH")
    async with running_server(repository) as server:
        process = await asyncio.create_subprocess_exec(
            *(program, "-m", "tiny", "-i", "grpc", "-u", server.address, *flags),
            *("--input-data", str(ROOT / "examples/perf_analyzer/seeds.json")),
            # However unsteady: this is no measurement.
            *("--measurement-mode", "count_windows", "--measurement-request-count", "20"),
            *("--stability-percentage", "1000", "--max-trials", "5"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ,
        )
        output, _ = await process.communicate()
        started, codes = await sum_of_codes(server)
    assert "infer/sec" in output.decode(), output.decode()
    assert started > 20
    assert set(codes) == {"OK"}
