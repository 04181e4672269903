"""Whatever comes over the wire, the server answers with a known status, goes on, and grows not.

One server for all tests, in a thread of its own; at the end it must have counted each call's end.
"""

import asyncio
import contextlib
import logging
import random
import socket
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ganserve.inference.v2 import open_inference_pb2
from ganserve.server import running
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.ganserve.conftest import server_config
from tests.ganserve.tiny import write_artifact

Code = grpc.StatusCode
EXPECTED = {
    *(Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED),
    *(Code.UNIMPLEMENTED, Code.CANCELLED, Code.DEADLINE_EXCEEDED),
}
METHODS = [
    (f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
    for module, name in (
        (pb, "ImageGenerationService"),
        (open_inference_pb2, "GRPCInferenceService"),
        (health_pb2, "Health"),
        (reflection_pb2, "ServerReflection"),
    )
    for service in [module.DESCRIPTOR.services_by_name[name]]
    for method in service.methods
]
FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,  # the same examples every time; other seeds are for other occasions
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Server:
    """A running server, seen from another thread."""

    def __init__(self, running_server):
        self.address = running_server.address
        self.registry = running_server.metrics.registry
        self.interceptor = running_server.interceptor

    def series(self):
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in self.registry.collect()
            for sample in family.samples
        }

    def wait_until_counted(self):
        """A call is counted after it was answered."""
        deadline = time.monotonic() + 20
        while self.total("grpc_server_started_total") != self.total("grpc_server_handled_total"):
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def total(self, name):
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    write_artifact(models)
    write_artifact(models, "classes", class_names=["a", "b"])
    started, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    seen, records = [], []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record)

    async def serve():
        async with running(server_config(models, default_model="tiny")) as server:
            await server.wait_until_ready()
            seen.append(Server(server))
            started.set()
            await stop.wait()

    logger, keep = logging.getLogger("ganserve"), Keep(logging.ERROR)
    logger.addHandler(keep)
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(60)
    yield seen[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)
    loop.close()
    logger.removeHandler(keep)
    assert not thread.is_alive()
    assert [*map(logging.Formatter().format, records)] == []  # with their tracebacks
    total = seen[0].total
    assert total("grpc_server_started_total") == total("grpc_server_handled_total") > 0
    assert total("ganserve_pending_images") == 0
    codes = {
        sample.labels["grpc_code"]
        for family in seen[0].registry.collect()
        for sample in family.samples
        if sample.name == "grpc_server_handled_total" and sample.value
    }
    assert not {"UNKNOWN", "INTERNAL"} & codes


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(autouse=True)
def answers_afterwards(channel):
    """What every test here ends with: an ordinary call gets its images."""
    yield
    reply = ImageGenerationServiceStub(channel).GenerateImages(sound(), timeout=20)
    assert (reply.count, len(reply.pixels)) == (3, 3 * 48)


def sound():
    return pb.GenerateImagesRequest(
        seed_range=pb.SeedRange(start=5, count=3), format=pb.IMAGE_FORMAT_RAW
    )


def call(channel, method, content, timeout=2.0):
    """The status of a call with these bytes as its message; of a stream, one reply is read."""
    path, sends_stream, gets_stream = method
    kind = f"{'stream' if sends_stream else 'unary'}_{'stream' if gets_stream else 'unary'}"
    ask = getattr(channel, kind)(path)
    given = iter([content]) if sends_stream else content
    try:
        if not gets_stream:
            ask(given, timeout=timeout)
        else:
            replies = ask(given, timeout=timeout)
            next(replies, None)
            replies.cancel()
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method[0])
def test_random_bytes_as_messages(channel, method):
    noise = random.Random(method[0])
    contents = [b"", b"\x80", b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 200]
    contents += [noise.randbytes(noise.randrange(1, 60)) for _ in range(25)]
    # Near to sound ones: these get past the first check.
    contents += [_damaged(sound().SerializeToString(), noise) for _ in range(25)]
    codes = {call(channel, method, content, timeout=1.0) for content in contents}
    assert codes <= EXPECTED


def _damaged(content, noise):
    changed = bytearray(content)
    for _ in range(noise.randint(1, 3)):
        changed[noise.randrange(len(changed))] = noise.randrange(256)
    return bytes(changed)


UINT64 = st.sampled_from([0, 1, 2**31, 2**32, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
UINT32 = st.sampled_from([0, 1, 512, 513, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
FLOATS = st.sampled_from([0.0, -0.0, 1e-45, 1e38, float("inf"), float("nan"), -1.0, 1.0])
TEXTS = st.sampled_from(["", "tiny", "classes", "0", "1", "-1", "1" * 30, "\0", "é" * 500, "a/b"])
NUMBERS = st.sampled_from([0, 1, 511, 512, 513, 5000])


@st.composite
def requests(draw):
    """Messages with every field at its edges, alone and together."""
    request = pb.GenerateImagesRequest(
        model_name=draw(TEXTS), model_version=draw(TEXTS), class_labels=draw(st.lists(UINT32))
    )
    source = draw(st.sampled_from(["none", "seeds", "range", "latents", "interpolation"]))
    if source == "seeds":
        request.seeds.values.extend(draw(st.lists(UINT64) | NUMBERS.map(range)))
    elif source == "range":
        request.seed_range.start, request.seed_range.count = draw(UINT64), draw(UINT32)
    elif source == "latents":
        rows = draw(st.lists(FLOATS) | NUMBERS.map(lambda n: [0.5] * n))
        request.latents.values.extend(rows)
        request.latents.latent_dim = draw(st.sampled_from([0, 4]) | UINT32)
    elif source == "interpolation":
        request.interpolation.seeds.extend(draw(st.lists(UINT64) | NUMBERS.map(range)))
        request.interpolation.frames_per_segment = draw(UINT32)
    if draw(st.booleans()):
        request.truncation = draw(FLOATS)
    request.format = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 2**31 - 1, -1]))
    if draw(st.booleans()):
        request.quality = draw(UINT32)
    return request


@FUZZ
@given(request_=requests(), stream=st.booleans())
def test_every_field_at_its_edges(channel, request_, stream):
    method = METHODS[1] if stream else METHODS[0]
    assert call(channel, method, request_.SerializeToString(), timeout=20) in EXPECTED


@st.composite
def inferences(draw):
    """Tensors of every type and shape, with contents that do or do not fit."""
    request = open_inference_pb2.ModelInferRequest(
        model_name=draw(TEXTS), model_version=draw(TEXTS), id=draw(TEXTS)
    )
    names = st.sampled_from(["seeds", "latents", "labels", "images", ""])
    for name in draw(st.lists(names, max_size=3)):
        request.inputs.add(
            name=name,
            datatype=draw(st.sampled_from(["UINT64", "FP32", "INT64", "BYTES", "", "uint64"])),
            shape=draw(st.lists(st.sampled_from([-1, 0, 1, 2, 4, 2**62, -(2**63)]), max_size=3)),
        )
        if draw(st.booleans()):
            size = draw(st.sampled_from([0, 1, 7, 8, 16, 32]))
            request.raw_input_contents.append(bytes(size))
        else:
            request.inputs[-1].contents.uint64_contents.extend(draw(st.lists(UINT64, max_size=4)))
    for key in draw(st.lists(TEXTS | st.sampled_from(["truncation", "timeout"]), max_size=2)):
        request.parameters[key].CopyFrom(
            draw(
                st.sampled_from(
                    [
                        open_inference_pb2.InferParameter(),
                        open_inference_pb2.InferParameter(int64_param=-(2**63)),
                        open_inference_pb2.InferParameter(int64_param=1),
                        open_inference_pb2.InferParameter(string_param="nan"),
                        open_inference_pb2.InferParameter(bool_param=True),
                    ]
                )
            )
        )
    return request


@FUZZ
@given(request_=inferences())
def test_every_tensor_at_its_edges(channel, request_):
    path = "/inference.GRPCInferenceService/ModelInfer"
    content = request_.SerializeToString()
    assert call(channel, (path, False, False), content, timeout=20) in EXPECTED


def test_unknown_models_and_methods_make_no_series(server, channel):
    stub = ImageGenerationServiceStub(channel)
    health = health_pb2_grpc.HealthStub(channel)

    def ask(index):
        name = f"model-{index}"
        unknown = channel.unary_unary(f"/ganserve.v1.ImageGenerationService/Method{index}")
        return [
            stub.GenerateImages.future(pb.GenerateImagesRequest(model_name=name), timeout=60),
            *(unknown.future(b"", timeout=60) for _ in range(index % 20 == 0)),
            *(
                health.Check.future(health_pb2.HealthCheckRequest(service=name), timeout=60)
                for _ in range(index % 20 == 0)
            ),
        ]

    for pending in ask(0):
        pending.exception()
    server.wait_until_counted()
    before = server.series()
    codes, pending = set(), []
    for index in range(5_000):
        pending += ask(index)
        if len(pending) >= 200:
            codes |= {one.exception().code() for one in pending}
            pending = []
    assert codes == {Code.NOT_FOUND, Code.UNIMPLEMENTED}
    assert server.series() == before
    # Nor do they stay behind anywhere else.
    assert len(server.interceptor._handlers) <= len(METHODS)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def frame(kind, flags, stream, payload, length=None):
    length = len(payload) if length is None else length
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


HEADERS = bytes.fromhex("8386") + b"\x04\x05/a/b/" + b"\x41\x01x"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(1000), id="zeros"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP 1"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(PREFACE[:10], id="half a preface"),
        pytest.param(PREFACE + SETTINGS[:5], id="half a frame"),
        pytest.param(PREFACE + SETTINGS + frame(1, 4, 1, HEADERS, length=500), id="half headers"),
        pytest.param(PREFACE + SETTINGS + frame(1, 0, 1, HEADERS), id="headers without end"),
        pytest.param(PREFACE + SETTINGS + frame(1, 4, 1, b"\xff" * 50), id="headers of noise"),
        pytest.param(PREFACE + SETTINGS + frame(0, 0, 1, b"x" * 50), id="data of no stream"),
        pytest.param(PREFACE + SETTINGS + frame(1, 4, 2, HEADERS), id="a stream of the server's"),
        pytest.param(PREFACE + SETTINGS + frame(99, 255, 2**31 - 1, b"?"), id="unknown frame"),
        pytest.param(PREFACE + SETTINGS + frame(8, 0, 0, b"\0\0\0\0"), id="window of 0"),
        pytest.param(PREFACE + SETTINGS + b"\xff" * 2000, id="noise"),
        pytest.param(PREFACE + SETTINGS + frame(6, 0, 0, bytes(8)) * 1000, id="pings"),
        pytest.param(PREFACE + SETTINGS * 1000, id="settings"),
        pytest.param(
            PREFACE
            + SETTINGS
            + b"".join(
                frame(1, 4, n, HEADERS) + frame(3, 0, n, bytes(4)) for n in range(1, 2001, 2)
            ),
            id="streams begun and reset",
        ),
    ],
)
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_what_is_no_call_at_all(server, content, leaves):
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port))) as client:
        client.settimeout(0.2)
        with contextlib.suppress(OSError):  # the server may close before it has read all
            client.sendall(content)
            if not leaves:
                client.recv(65536)


def test_noise_from_many_connections(server):
    noise = random.Random(2)
    host, _, port = server.address.rpartition(":")
    for _ in range(200):
        with (
            socket.create_connection((host, int(port))) as client,
            contextlib.suppress(OSError),
        ):
            client.sendall(PREFACE + SETTINGS + noise.randbytes(noise.randrange(1, 300)))


def test_many_who_connect_and_dawdle_hold_up_nobody(server, channel):
    host, _, port = server.address.rpartition(":")
    stub = ImageGenerationServiceStub(channel)
    with contextlib.ExitStack() as sockets:
        loiterers = [
            sockets.enter_context(socket.create_connection((host, int(port)))) for _ in range(200)
        ]
        greeting = PREFACE + SETTINGS
        for index in range(len(greeting)):  # a byte at a time, as slowly as calls are answered
            for loiterer in loiterers:
                with contextlib.suppress(OSError):
                    loiterer.sendall(greeting[index : index + 1])
            if index % 8 == 0:
                assert stub.GenerateImages(sound(), timeout=20).count == 3
