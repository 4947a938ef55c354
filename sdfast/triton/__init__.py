"""Triton Inference Server: a bundle as a model of its repository.

FOLDER/NAME/config.pbtxt    what requests and answers are (`configuration`)
FOLDER/NAME/1/model.py      draws with sdfast, in Triton's Python backend (`model`)
FOLDER/NAME/1/bundle/       the bundle
FOLDER/NAME_NETWORK/…       where asked for, a network alone, for Triton's ONNX Runtime backend
"""

from .repository import export

__all__ = ["export"]
