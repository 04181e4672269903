"""The choices of what samples are held against, beside as many training examples as samples."""

from typing import Literal

ReferenceChoice = Literal["train", "test", "all"]  # the whole of the split, or of both
