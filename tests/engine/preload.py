"""Modules that engine processes of tests import before they are forked."""

from diffusers import AutoencoderKL  # noqa: F401
from transformers import T5EncoderModel  # noqa: F401

import flowloom.engine.run
import flowloom.engine.trainer  # noqa: F401
