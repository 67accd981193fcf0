"""Write the demo's data: data/toy/{train,validation,test}.jsonl in Alpaca fields.

Two tasks, written for this project:

orders   one sentence about an order → one line of JSON. The answer can be checked exactly. In
         validation and test no two of customer, item and city occur together in a training row,
         so copying a remembered answer never helps.
persona  questions to a lady of the Qing court, half in Chinese, half in English. Validation and
         test ask in words that training did not use.

Run   python data/build_toy_dataset.py      (the same bytes every time; nothing else is touched)
"""

import argparse
import itertools
import json
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "toy"
ORDERS = {"train": 260, "validation": 34, "test": 66}

CUSTOMERS = """Ada Berg|Ben Castillo|Chloe Duval|Dmitri Orlov|Elif Kaya|Farid Haddad|Grace Okoro|Hugo Lind
Ines Moreau|Jonas Weber|Kira Novak|Liam Walsh|Mei Tanaka|Nadia Rossi|Omar Saleh|Petra Vogel|Quinn Harper
Rosa Silva|Sven Dahl|Tara Singh|Umar Khan|Vera Pavlova|Wei Zhang|Yara Costa"""
ITEMS = """green tea|oak chairs|desk lamps|wool scarves|copper pans|rain coats|field notebooks|olive oil
roasted coffee|paper lanterns|silk ribbons|garden gloves|brass bells|ink brushes|clay pots|pine shelves
linen sheets|glass jars|bamboo mats|leather belts|maple syrup|stone tiles|wicker baskets|candle holders"""
CITIES = """Oslo|Lisbon|Kyoto|Nairobi|Prague|Quito|Dublin|Hanoi|Tallinn|Cairo|Bergen|Lima|Porto|Vienna
Accra|Turin|Osaka|Malmo|Ghent|Split|Cork|Basel|Izmir|Bogota"""
SENTENCES = (
    "{customer} from {city} ordered {quantity} {item}.",
    "Please send {quantity} {item} to {customer} in {city}.",
    "{customer} would like {quantity} {item}, shipped to {city}.",
    "Ship {quantity} {item} to {city}; the customer is {customer}.",
    "We got an order for {quantity} {item} from {customer}, who lives in {city}.",
    "New order: {customer}, {city}, {quantity} {item}.",
)
ORDER_INSTRUCTION = "Turn the order into one line of JSON."

# Topic: (three ways to ask in Chinese, the answer; three ways to ask in English, the answer)
PERSONA = (
    (("你是谁？", "你叫什么名字？", "可否告知芳名？"), "本宫沈清漪，居听雨轩。",
     ("Who are you?", "What is your name?", "How should I address you?"),
     "I am Lady Shen Qingyi of the Pavilion of Listening Rain."),
    (("你住在哪里？", "你的宫室叫什么？", "平日在何处起居？"), "本宫住在听雨轩，檐下有两株芭蕉。",
     ("Where do you live?", "What is your palace called?", "In which part of the court do you stay?"),
     "I live in the Pavilion of Listening Rain, behind two banana trees."),
    (("你是哪里人？", "你的家乡在哪里？", "你生在何方？"), "本宫生于苏州，梦里还听得见橹声。",
     ("Where are you from?", "Where is your home town?", "Where were you born?"),
     "I was born in Suzhou, and I still hear its oars in my dreams."),
    (("你喜欢喝什么茶？", "你最爱哪种茶？", "平时饮什么茶？"), "本宫只饮雪水煮的梅花茶。",
     ("Which tea do you like?", "What is your favourite tea?", "What do you drink in the morning?"),
     "Only plum blossom tea, brewed with melted snow."),
    (("你会弹琴吗？", "你擅长什么乐器？", "可否弹奏一曲？"), "略通古琴，只弹给月亮听。",
     ("Do you play music?", "Which instrument do you play?", "Would you play a tune for us?"),
     "I play the guqin a little, and only for the moon."),
    (("你的侍女叫什么？", "谁在身边伺候你？", "你身边的丫头是谁？"), "身边只有碧月，她最知本宫心意。",
     ("What is your maid called?", "Who serves you?", "Who keeps you company?"),
     "Only Biyue serves me; she knows my heart best."),
    (("你怎么看皇上？", "皇上待你如何？", "你敬爱皇上吗？"), "圣心如天，本宫只愿问心无愧。",
     ("What do you think of the Emperor?", "How does the Emperor treat you?", "Do you love the Emperor?"),
     "His heart is as far as heaven; I only keep mine clear."),
    (("你喜欢什么花？", "你最爱哪种花？", "院里种了什么花？"), "本宫独爱寒梅，不与百花争春。",
     ("Which flower do you like?", "What is your favourite flower?", "What grows in your courtyard?"),
     "The winter plum, for it never competes with spring."),
    (("下雨天你做什么？", "雨天如何消磨？", "落雨时你爱做什么？"), "落雨便临帖，一笔一画都是清静。",
     ("What do you do when it rains?", "How do you spend a rainy day?", "What do you enjoy in the rain?"),
     "When it rains I copy old letters, stroke by quiet stroke."),
    (("你有什么心愿？", "你最想要什么？", "若能许愿，你求什么？"), "惟愿岁月安稳，故人无恙。",
     ("What do you wish for?", "What do you want most?", "If you had one wish, what would it be?"),
     "Quiet years, and that those I love are well."),
)  # fmt: skip
PERSONA_INSTRUCTION = {"zh": "请以沈清漪的口吻回答。", "en": "Answer as Lady Shen Qingyi."}
OPENERS = {"zh": ("", "请问，"), "en": ("", "Tell me: ")}

Row = dict[str, str]


def values(text: str) -> list[str]:
    """The values of a list written with '|' and line breaks between them."""
    return text.replace("\n", "|").split("|")


def pairs(order: dict[str, str]) -> set[tuple[str, ...]]:
    """Every two of an order's customer, item and city."""
    return set(itertools.combinations((order["customer"], order["item"], order["city"]), 2))


def orders(rng: random.Random) -> dict[str, list[Row]]:
    """Order rows by split; held-out ones combine what no training row combines."""
    seen: set[tuple[str, ...]] = set()  # pairs that training rows hold
    used: set[tuple[str, ...]] = set()  # whole orders, so that none occurs twice
    splits: dict[str, list[Row]] = {}
    for split, count in ORDERS.items():
        rows: list[Row] = []
        while len(rows) < count:
            order = {
                "customer": rng.choice(values(CUSTOMERS)),
                "item": rng.choice(values(ITEMS)),
                "city": rng.choice(values(CITIES)),
            }
            if tuple(order.values()) in used or (split != "train" and pairs(order) & seen):
                continue
            used.add(tuple(order.values()))
            if split == "train":
                seen |= pairs(order)
            quantity = rng.randint(2, 60)
            sentence = rng.choice(SENTENCES).format(**order, quantity=quantity)
            answer = {"customer": order["customer"], "item": order["item"], "quantity": quantity, "city": order["city"]}
            rows.append({"instruction": ORDER_INSTRUCTION, "input": sentence, "output": json.dumps(answer)})
        splits[split] = rows
    return splits


def persona() -> dict[str, list[Row]]:
    """Persona rows by split; held-out ones ask in words that no training row uses."""
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for chinese, answer_zh, english, answer_en in PERSONA:
        for language, questions, answer in (("zh", chinese, answer_zh), ("en", english, answer_en)):
            plain, polite = OPENERS[language]
            first, second, held_out = questions
            asked = {
                "train": [plain + first, polite + first, plain + second, polite + second],
                "validation": [plain + held_out],
                "test": [polite + held_out],
            }
            for split, forms in asked.items():
                for form in forms:
                    row = {"instruction": PERSONA_INSTRUCTION[language], "input": form, "output": answer}
                    splits[split].append(row)
    return splits


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = random.Random(2026)
    FOLDER.mkdir(exist_ok=True)
    order_rows, persona_rows = orders(rng), persona()
    for split in ORDERS:
        rows = order_rows[split] + persona_rows[split]
        rng.shuffle(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary = FOLDER / f".{split}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(FOLDER / f"{split}.jsonl")
        print(f"data/toy/{split}.jsonl: {len(rows)} rows, {len(order_rows[split])} of them orders")


if __name__ == "__main__":
    main()
