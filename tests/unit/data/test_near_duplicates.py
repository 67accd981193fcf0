import random

from lockstep.data import near_duplicates
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.near_duplicates import Sieve, Signatures
from lockstep.data.records import Record
from lockstep.text.json_text import JsonObject

WORDS = ["the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "are", "with", "his", "they"]
CHINESE = "今天天气很好我们一起去公园散步顺便买点水果回家吃吧皇上万福金安臣妾告退本宫乏了"


def row(question: str, answer: str, line: int = 1) -> ConversationRow:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return ConversationRow(messages, Record("f", line, JsonObject([]), "{}"))


def clusters(texts: list[str], similarity: float = 0.8) -> list[list[int]]:
    signatures = Signatures()
    for text in texts:
        signatures.add(text)
    return signatures.clusters(similarity)


def test_short_chinese_rows_that_differ_in_a_character_are_near_duplicates_and_others_are_not() -> None:
    first = "今天天气很好，我们一起去公园散步，顺便买点水果回家吃吧。"
    texts = [first, first.replace("水果", "蔬果"), first + "！", "你是谁？本宫沈清漪。", "你叫什么？臣妾姓沈。", first]
    assert clusters(texts) == [[0, 1, 2, 5]]
    assert clusters(["Ｈｅｌｌｏ，  World  again and again", "hello, world again and again"]) == [[0, 1]]


def test_planted_near_duplicates_are_found_among_many_and_nothing_else() -> None:
    chance = random.Random(1)
    texts = [" ".join(chance.choices(WORDS, k=40)) + "".join(chance.choices(CHINESE, k=60)) for _ in range(3000)]
    planted = {}
    for number in range(0, 300, 3):
        body = list(texts[number])
        body[chance.randrange(len(body))] = "变"
        planted[len(texts)] = number
        texts.append("".join(body))
    assert clusters(texts) == sorted([first, second] for second, first in planted.items())


def test_a_thousand_equal_texts_are_one_group() -> None:
    assert clusters(["same text here"] * 1000 + ["quite another one"]) == [list(range(1000))]
    assert clusters([]) == []
    assert clusters(["", "a"]) == []


def test_the_first_of_equal_rows_passes() -> None:
    sieve = Sieve(("duplicate", "in_two_splits"), {})
    assert sieve.fault(row("q", "a"), "test") is None
    assert sieve.fault(row("q", "a", 2), "test") == ("duplicate", "of an earlier row in test")
    assert sieve.fault(row("q", "a", 3), "train") == ("in_two_splits", "stands in test, too")
    assert sieve.fault(row("q", "b"), "train") is None
    assert sieve.fault(row("q", "b"), "train") == ("duplicate", "of an earlier row in train")
    apart = Sieve(("duplicate",), {})
    assert [bool(apart.fault(row("q", "a"), split)) for split in ("test", "train", "train")] == [False, False, True]
    free = Sieve((), {})
    assert [free.fault(row("q", "a"), split) for split in ("test", "test", "train")] == [None] * 3
    near = Sieve(("near_duplicate",), {"f:2": "f:1"})
    assert near.fault(row("q", "a", 1), "train") is None
    assert near.fault(row("q", "b", 2), "train") == ("near_duplicate", "of f:1")
    dropped = Sieve(("near_duplicate",), {"f:2": "f:1", "f:3": "f:1"})  # f:1 itself was unfit
    assert dropped.fault(row("q", "b", 2), "train") is None
    assert dropped.fault(row("q", "c", 3), "train") == ("near_duplicate", "of f:2")
    other = Sieve(
        ("near_duplicate",), {"f:2": "f:1", "f:3": "f:1"}, lambda name, other: False
    )  # of f:1, not of each other
    assert [other.fault(row("q", text, line), "train") for line, text in ((2, "b"), (3, "c"))] == [None, None]


def test_long_texts_are_signed_a_few_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(near_duplicates, "GRAMS", 50)
    texts = [f"row {n}: " + " ".join(WORDS[n:] + WORDS[:n]) for n in range(12)]
    assert clusters([*texts, *texts]) == [[n, n + 12] for n in range(12)]


def test_keys_depend_on_all_that_is_taught() -> None:
    assert near_duplicates.content_key(row("q", "a", 1)) == near_duplicates.content_key(row("q", "a", 9))
    assert len({near_duplicates.content_key(conversation) for conversation in (row("q", "a"), row("q", "a "), row("qa", ""), ConversationRow(row("q", "a").messages, row("q", "a").record, tools=({},)))}) == 4  # fmt: skip
