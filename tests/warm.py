"""What stages import, imported once, by the process that they are then forked from."""

import gc
import importlib

for name in (
    "torch", "numpy", "transformers", "transformers.models.llama.modeling_llama", "transformers.trainer",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "peft", "bitsandbytes", "accelerate",
    "datasets", "datasets.arrow_writer", "safetensors.torch", "tokenizers", "openai", "httpx", "matplotlib.figure",
    "tensorboard", "torch.utils.tensorboard", "torch._dynamo", "tqdm", "jinja2", "pydantic", "yaml", "sacrebleu",
):  # fmt: skip
    importlib.import_module(name)
gc.freeze()  # or each fork looks through all that was imported
