import pytest

from ganserve.inference.v2 import open_inference_pb2 as inference_pb
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.wire_format import Malformed, TooManyFields, check_fields

INFER = inference_pb.ModelInferRequest
LONG = INFER(
    model_name="faces",
    inputs=[
        INFER.InferInputTensor(
            name="seeds",
            datatype="UINT64",
            shape=[3],
            contents=inference_pb.InferTensorContents(uint64_contents=[0, 7, 2**64 - 1]),
        ),
    ],
    parameters={"truncation": inference_pb.InferParameter(double_param=0.5)},
    raw_input_contents=[bytes(range(256)) * 10],
)


def test_all_fields_are_counted_those_of_fields_too_and_what_is_packed_as_one():
    # model_name; a parameter, its name, its value, the number in that; an input, its name,
    # datatype, shape and contents, the numbers in these; raw contents.
    content = LONG.SerializeToString()
    check_fields(content, INFER.DESCRIPTOR, 12)
    with pytest.raises(TooManyFields):
        check_fields(content, INFER.DESCRIPTOR, 11)


def test_bytes_that_look_like_fields_are_not_looked_into():
    message = pb.GenerateImagesRequest(
        model_name="\n\n\n\n\n\n", seeds=pb.Seeds(values=range(1000))
    )
    check_fields(message.SerializeToString(), pb.GenerateImagesRequest.DESCRIPTOR, 3)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x0b\x0c", id="a group"),
        pytest.param(b"\xff", id="half a number"),
        pytest.param(b"\xff" * 20, id="a number without end"),
    ],
)
def test_what_is_no_message_is_none(content):
    with pytest.raises(Malformed):
        check_fields(content, INFER.DESCRIPTOR, 1000)
