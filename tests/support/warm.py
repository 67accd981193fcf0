# ruff: noqa: F401
"""What stages import, imported once, by the process that they are then forked from."""

import gc

import accelerate
import bitsandbytes
import datasets.arrow_writer
import httpx
import jinja2
import matplotlib.figure
import numpy
import openai
import peft
import pydantic
import sacrebleu
import safetensors.torch
import tensorboard
import tokenizers
import torch._dynamo
import torch.utils.tensorboard
import tqdm
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.models.llama.modeling_llama
import transformers.trainer
import yaml

gc.freeze()  # or each fork looks through all that was imported
