"""The name of every file and folder that one stage writes and another stage, or another program, reads: each once.

`docs/files.md` says what they hold.
"""

MANIFEST = "manifest.json"

# Folders of a run, outputs/<run>/
DATA = "data"
ADAPTER = "adapter"
MERGED = "merged"
BASE = "base"  # the dequantized base that an adapter of QLoRA is served on
EVALUATION = "eval"
ANSWERS = "answers"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "runs"
SERVE = "serve"
SERVE_BASE = "serve-base"  # of a server in mode base, beside that of the tuned model

# A Hugging Face model's folder
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SENTENCEPIECE = "tokenizer.model"
VOCABULARY = "vocab.json"
WORDPIECES = "vocab.txt"
MERGES = "merges.txt"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

# data/, beside data.failed/ with the reports of rows that were refused
DATA_FAILED = "data.failed"
TRAIN, VALIDATION, TEST = "train", "validation", "test"  # folders of the splits
LEDGER = "ledger.json"
REJECTS = "rejects.jsonl"
CHANGES = "changes.jsonl"
QUALITY = "quality.json"
PREVIEW = "preview.html"
SAVED_STATE = "state.json"  # of `save_to_disk`: the Arrow files of a split
SAVED_SPLITS = "dataset_dict.json"  # of `save_to_disk`: the splits of a folder
CONTRACT = "contract.json"  # also with adapter and merged model

# adapter/, and beside it while a training runs
REFERENCE = "reference.json"
BASE_TENSORS = "base_tensors.json"
METRICS = "metrics.json"  # also in eval/
COVERAGE = "coverage.json"  # the account of weights
LOSS_PLOT = "loss.png"
MODEL_CARD = "README.md"
TRAINING_LOG = "metrics.jsonl"
SAMPLES = "samples.jsonl"

# checkpoints/checkpoint-STEP/
TRAINER_STATE = "trainer_state.json"  # transformers' own

# merged/, or merged.failed/ with nothing but the report
MERGED_FAILED = "merged.failed"
MERGE_REPORT = "merge_report.json"

# serve/
GATE_REPORT = "gate_report.json"
SERVER_NOTE = "server.json"
RULES = "rules.json"  # for the middleware; its path marks all processes of a server
SERVER_LOG = "server.log"

# eval/, and beside it
PREDICTIONS = "predictions.jsonl"
REPORT = "report.html"
SHEET = "sheet.csv"
DEMO = "demo.json"

# outputs/<run>/, beside the stages' folders
DISK_CHECK = "disk_check.json"
BUNDLE = "bundle.lockstep"  # what a deployment is verified against elsewhere

# outputs/, beside the runs
VERIFY = "verify"  # what `verify` writes, where it is not told otherwise
