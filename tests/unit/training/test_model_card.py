from lockstep.model.coverage import Account, Weight
from lockstep.settings import yaml_file
from lockstep.training import model_card


def test_the_card_says_what_is_known_and_leaves_nothing_to_fill_in() -> None:
    settings = yaml_file.load(None, {"run": "mine", "method": "lora"})
    metrics = {
        "train_rows": 9,
        "supervised_tokens": 99,
        "steps": 3,
        "dtype": "bfloat16",
        "device": "cpu",
        "train_loss": 1.5,
    }
    ledger = {"files": {"data/train.jsonl": {"lines": 10, "kept": 9, "dropped": {"blank": 1}}}}
    weights = {"a": Weight(3000, 1600, "adapted_4bit", "adapter"), "b": Weight(1000, 2000, "frozen_16bit", "embedding")}
    coverage = Account(weights).as_json()
    text = model_card.text(settings, metrics, ledger, [2], coverage)
    assert text.startswith("---\nbase_model: Qwen/Qwen2-1.5B-Instruct\nlibrary_name: peft\n")
    assert "| data/train.jsonl | 10 | 9 | 1 |" in text and "not measured, as there were no held-out rows" in text
    assert "| 4-bit, with an adapter | 1 | 3,000 | 75.0 % | 0.0016 MB |" in text and "trained |" not in text
    assert "| lora.r | 16 |" in text and "quantization." not in text and "None\n" not in text
    held_out = model_card.text(settings, metrics | {"eval_loss": 0.5, "eval_perplexity": 1.65}, ledger, [2], coverage)
    assert "0.5000 nats per token (perplexity 1.65)" in held_out
