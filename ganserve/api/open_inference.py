"""The Open Inference Protocol: the same work as our own service, behind tensors.

https://github.com/kserve/open-inference-protocol, version 2, with Triton's ModelConfig.
"""

import time
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version as installed_version

from ganserve.api.inference_request import INPUTS, OUTPUT, parse_inference, parse_timeout_seconds
from ganserve.api.request import check_one_reply, parse_version, rows_of
from ganserve.api.service import Limits
from ganserve.batching.entries import Generated
from ganserve.calls import current_deadline, note_request
from ganserve.encoding import ImageFormat
from ganserve.errors import Loading, UnknownModel
from ganserve.inference.v2 import model_config_pb2 as config_pb
from ganserve.inference.v2 import open_inference_pb2 as pb
from ganserve.inference.v2.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from ganserve.metrics import Metrics
from ganserve.models.model_spec import ModelSpec
from ganserve.repository.model_index import ModelIndex
from ganserve.repository.versions import ModelState, Version
from ganserve.security.admission import Admission
from ganserve.setting_values import VersionPolicy
from ganserve.transport.call_context import Context

# As Triton spells them, for clients that look.
_PLATFORM = "onnxruntime_onnx"
_BACKEND = "onnxruntime"
_EXTENSIONS = ("model_configuration",)


class OpenInferenceService(GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`."""

    def __init__(
        self,
        index: ModelIndex,
        admission: Admission,
        metrics: Metrics,
        limits: Limits,
        *,
        version_policy: VersionPolicy,
        versions: Collection[tuple[str, int]],
        is_ready: Callable[[], bool],
    ) -> None:
        self._index = index
        self._admission = admission
        self._observe_encode_seconds = metrics.encode_seconds.labels(ImageFormat.RAW.value).observe
        self._limits = limits
        self._version_policy = version_policy
        self._versions = versions
        self._is_ready = is_ready
        self._server_version = installed_version("ganserve")

    async def ServerLive(self, _: pb.ServerLiveRequest, __: Context) -> pb.ServerLiveResponse:
        """Answer."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _: pb.ServerReadyRequest, __: Context) -> pb.ServerReadyResponse:
        """Say the same as /readyz."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, _: Context) -> pb.ModelReadyResponse:
        """Say whether ModelInfer would find the model."""
        number = parse_version("version", request.version)
        return pb.ModelReadyResponse(ready=self._is_model_ready(request.name, number))

    async def ServerMetadata(
        self, _: pb.ServerMetadataRequest, __: Context
    ) -> pb.ServerMetadataResponse:
        """Name the server."""
        return pb.ServerMetadataResponse(
            name="ganserve", version=self._server_version, extensions=_EXTENSIONS
        )

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, _: Context
    ) -> pb.ModelMetadataResponse:
        """Describe a model's tensors, the batch included."""
        number = parse_version("version", request.version)
        version, spec = self._find(request.name, number)
        versions = self._index.versions_of(version.name)
        return pb.ModelMetadataResponse(
            name=version.name,
            versions=[str(v.number) for v in versions if v.state is ModelState.READY],
            platform=_PLATFORM,
            inputs=[
                _describe(name, INPUTS[name].datatype, dims)
                for name, dims in input_dims(spec).items()
            ],
            outputs=[_describe(OUTPUT, "UINT8", (spec.height, spec.width, spec.channels))],
        )

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, _: Context
    ) -> pb.ModelConfigResponse:
        """Describe a model as Triton would."""
        number = parse_version("version", request.version)
        version, spec = self._find(request.name, number)
        numbers = [number for name, number in self._versions if name == version.name]
        policy = build_policy(self._version_policy, numbers)
        return pb.ModelConfigResponse(config=build_config(version, spec, policy))

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        """Generate all images, then answer."""
        deadline = min(current_deadline(), time.monotonic() + parse_timeout_seconds(request))
        number = parse_version("model_version", request.model_version)
        await self._index.wait_for_first_scan(request.model_name, number)
        with self._index.use(request.model_name, number) as (version, served):
            generation = parse_inference(request, served.spec, max_images=self._limits.max_images)
            check_one_reply("inputs", generation, served.spec)
            note_request(version.name, version.number, generation.count)
            with self._admission.taking_images(context, generation.count):
                rows, truncation = rows_of(generation, served.spec.latent_dim)
                generated = await served.batcher.submit(
                    rows, generation.labels, deadline=deadline, truncation=truncation
                )
            response = self._respond(version, generated, request.id)
            served.count_images(generation.count)
            return response

    def _is_model_ready(self, name: str, number: int | None) -> bool:
        try:
            with self._index.use(name, number, field="name"):
                return True
        except (UnknownModel, Loading):
            return False

    def _find(self, name: str, number: int | None) -> tuple[Version, ModelSpec]:
        """Find a version that was loaded.

        Raises:
            UnknownModel, Loading: there is none, or not yet, or no more.
        """
        version = self._index.describe(name, number)
        if version.served is None or version.state is not ModelState.READY:
            problem = version.error or f"is {version.state.value}"
            raise Loading(f"model {version.name!r} version {version.number}: {problem}")
        return version, version.served.spec

    def _respond(
        self, version: Version, generated: Generated, request_id: str
    ) -> pb.ModelInferResponse:
        """Build the message of these images."""
        response = pb.ModelInferResponse(
            model_name=version.name,
            model_version=str(version.number),
            id=request_id,
            raw_output_contents=[generated.pixels.tobytes()],
        )
        response.outputs.add(name=OUTPUT, datatype="UINT8", shape=generated.pixels.shape)
        self._observe_encode_seconds(0.0)  # as in our own service, for which RAW is not encoded
        return response


def input_dims(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """List the inputs that a model takes, with their sizes after the batch."""
    dims: dict[str, tuple[int, ...]] = {"seeds": (), "latents": (spec.latent_dim,)}
    return dims | {"labels": ()} if spec.class_names else dims


def build_policy(policy: VersionPolicy, numbers: Sequence[int]) -> config_pb.ModelVersionPolicy:
    """Say which versions serve; `numbers` are those of the policy `specific`."""
    match policy:
        case "latest":
            latest = config_pb.ModelVersionPolicy.Latest(num_versions=1)
            return config_pb.ModelVersionPolicy(latest=latest)
        case "all":
            return config_pb.ModelVersionPolicy(all=config_pb.ModelVersionPolicy.All())
        case "specific":
            specific = config_pb.ModelVersionPolicy.Specific(versions=numbers)
            return config_pb.ModelVersionPolicy(specific=specific)


def build_config(
    version: Version, spec: ModelSpec, policy: config_pb.ModelVersionPolicy
) -> config_pb.ModelConfig:
    """Describe a version as Triton's configuration does.

    With a `max_batch_size` above 0 the sizes would be those of one image, of which Triton and its
    clients want at least one; a seed has none. So it is 0, and the sizes include the batch.
    """
    config = config_pb.ModelConfig(
        name=version.name,
        platform=_PLATFORM,
        backend=_BACKEND,
        version_policy=policy,
        max_batch_size=0,
        default_model_filename=version.candidate.path.name,
    )
    for name, dims in input_dims(spec).items():
        config.input.add(
            name=name,
            data_type=config_pb.DataType.Value(f"TYPE_{INPUTS[name].datatype}"),
            dims=(-1, *dims),
            optional=name != "labels",  # seeds or latents, whichever it is
        )
    dims = (spec.height, spec.width, spec.channels)
    config.output.add(name=OUTPUT, data_type=config_pb.TYPE_UINT8, dims=(-1, *dims))
    return config


def _describe(
    name: str, datatype: str, dims: tuple[int, ...]
) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=(-1, *dims))
