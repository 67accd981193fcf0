import pytest
from support import tiny

from lockstep.data.collator import IGNORE, Collator


def test_equal_to_transformers_own_padding() -> None:
    from transformers import DataCollatorForSeq2Seq

    tokenizer = tiny.tokenizer()
    rows = [
        {"input_ids": list(range(3, 3 + n)), "labels": [IGNORE] * (n // 2) + list(range(n - n // 2))}
        for n in (5, 12, 9)
    ]
    ours = Collator(tokenizer.pad_token_id)(rows)
    theirs = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)([dict(row) for row in rows])
    for name, tensor in ours.items():
        assert tensor.tolist() == theirs[name].tolist()


@pytest.mark.parametrize("length", [1, 7, 8, 9])
def test_a_real_end_token_is_attended_though_it_is_the_pad_token(length: int) -> None:
    pad = 2
    rows = [
        {"input_ids": [5] * (length - 1) + [pad], "labels": [IGNORE] * (length - 1) + [pad]},
        {"input_ids": [5] * 9, "labels": [5] * 9},
    ]
    batch = Collator(pad)(rows)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["attention_mask"].sum(1).tolist() == [length, 9]
    assert batch["labels"][0, length - 1] == pad
    assert (batch["labels"][0, length:] == IGNORE).all()
