import random
from collections.abc import Iterator

from lockstep.evaluation import train_test_overlap
from lockstep.evaluation.train_test_overlap import Pair, find

WORDS = ["river", "table", "seven", "cloud", "open", "music", "yellow", "paper", "winter", "engine", "window", "garden"]
CHINESE = "今天天气很好我们一起去公园散步顺便买点水果回家吃吧皇上万福金安臣妾告退本宫乏了春江花月夜"


def pair(chance: random.Random) -> Pair:
    if chance.random() < 0.5:
        return " ".join(chance.choices(WORDS, k=14)), " ".join(chance.choices(WORDS, k=20))
    return "".join(chance.choices(CHINESE, k=18)), "".join(chance.choices(CHINESE, k=30))


def pairs(seed: int, rows: int) -> list[Pair]:
    chance = random.Random(seed)
    return [pair(chance) for _ in range(rows)]


def test_a_leaked_test_set_is_found_and_an_honest_one_is_not() -> None:
    training, test = pairs(1, 400), pairs(2, 50)
    honest = find(training, test)
    assert honest.rows == 50 and honest.training_rows == 400
    assert not honest.leaked and not honest.near_prompts and not honest.near_pairs
    leaked = find([*training, *test], test)
    assert leaked.leaked == list(range(50))
    assert leaked.pairs == {row: 400 + row for row in range(50)} and not leaked.near_pairs
    assert leaked.summary()["pairs"] == {"rows": 50, "first": [[row, 400 + row] for row in range(50)]}


def test_spelling_does_not_hide_a_leak() -> None:
    training = [("  What IS the capital of France? ", "Ｐａｒｉｓ。"), ("法国的首都是哪里？", "巴黎。")]
    overlap = find(training, [("what is the capital of france", "paris"), ("法国的首都是哪里", "巴黎")])
    assert overlap.prompts == overlap.answers == overlap.pairs == {0: 0, 1: 1}


def test_rows_with_one_other_character_or_more_around_them_are_near() -> None:
    training, test = pairs(3, 300), pairs(4, 40)
    chance = random.Random(5)

    def changed(text: str) -> str:
        place = chance.randrange(len(text))
        return text[:place] + "X" + text[place + 1 :]

    planted = [(changed(prompt), changed(answer)) for prompt, answer in test[:20]]
    longer = [
        (f"请回答下面的问题。Please answer: {prompt} ——谢谢！", f"{answer} 以上。") for prompt, answer in test[20:30]
    ]
    overlap = find([*training, *planted, *longer], test)
    assert sorted(overlap.near_pairs) == list(range(30)) and not overlap.pairs
    nearest = {row: training_row for row, (training_row, _) in overlap.near_pairs.items()}
    assert nearest == {row: 300 + row for row in range(30)}


def test_prompt_and_answer_count_apart() -> None:
    question, other = "今天的天气怎么样，适合去公园散步吗？", "请把下面这句话翻译成英文，并且解释每个词。"
    answer = "今天晴，气温二十度，适合散步，记得带上水。"
    overlap = find([(question, "不知道"), (other, answer)], [(question, answer)])
    assert overlap.prompts == {0: 0} and overlap.answers == {0: 1}
    assert not overlap.pairs and not overlap.near_pairs and overlap.leaked == [0]
    labels = find([(text, "positive") for text, _ in pairs(6, 20)], [(text, "positive") for text, _ in pairs(7, 20)])
    assert len(labels.answers) == 20 and not labels.leaked  # equal labels are no leak


def test_the_quick_look_misses_no_near_text() -> None:
    """Against comparing every text with every other one."""
    chance = random.Random(8)
    body = ["".join(chance.choices("天气好去公园买水果", k=14)) for _ in range(60)]
    texts = [text[: chance.randrange(9, 15)] + chance.choice(["", "吗", "春江"]) for text in body for _ in range(3)]
    known, training = texts[::2], texts[1::2]
    index = train_test_overlap._Index(known, 0.75)
    for text in training:
        grams = train_test_overlap.shingles(text)
        expected = {}
        for row, other in enumerate(map(train_test_overlap.shingles, known)):
            part = len(other & grams) / len(other)
            if part >= 0.75 and len(other) >= train_test_overlap.SHORTEST:
                expected[row] = part
        assert index.near(text) == expected


def test_training_rows_are_read_once_and_may_be_none() -> None:
    def stream() -> Iterator[Pair]:
        yield from pairs(9, 30)

    assert find(stream(), pairs(9, 30)).leaked == list(range(30))
    assert find([], pairs(9, 3)).summary()["leaked"] == 0
    assert find(pairs(9, 3), []).rows == 0
    blank = find([("", ""), ("哈" * 10_000, "🙂")], [("", ""), ("?", "🙂")])
    assert blank.pairs == {0: 0} and blank.answers == {0: 0, 1: 1}
