"""Answers beside their references, made by chance: some equal, some nearly, some empty, in English, Chinese and mixed."""

import random
import re

WORDS = re.findall(r"\S+", "the cat sat on a mat while it's raining, and 3.5 dogs (two of them) ran away. Good-bye!")
CHINESE = list("今天天气很好，我们一起去公园散步；顺便买点水果回家吃吧。北京大学的学生喜欢唱歌")
KINDS = ["en", "zh", "mixed"]


def pairs(kind: str, rows: int = 60) -> tuple[list[str], list[str]]:
    """Predictions and references: a prediction is its reference with words left out and changed."""
    chance = random.Random(kind)
    predictions, references = ["", "   "], ["a reference" if kind == "en" else "参考", "x"]
    for _ in range(rows):
        language = chance.choice(["zh", "en"]) if kind == "mixed" else kind
        pool, glue = (CHINESE, "") if language == "zh" else (WORDS, " ")
        reference = chance.choices(pool, k=chance.randrange(1, 40))
        if kind == "mixed" and chance.random() < 0.3:
            reference += [" ", "iPhone", " 15 ", "🙂"]
        prediction = [
            chance.choice(pool) if chance.random() < 0.2 else word for word in reference if chance.random() > 0.2
        ]
        predictions.append(glue.join(prediction))
        references.append(glue.join(reference))
    return predictions, references
