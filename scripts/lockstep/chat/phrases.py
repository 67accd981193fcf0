"""What the chat page says, in English and Chinese."""

from lockstep.errors import UserError
from lockstep.settings import commands

WORDS = {
    # key: (English, 中文)
    "model": ("Model", "模型"),
    "compare": ("Compare with", "对比"),
    "nobody": ("nothing", "不对比"),
    "base": ("base", "基座"),
    "dequantized": ("dequantized base", "反量化基座"),
    "system": ("System prompt", "系统提示"),
    "system_hint": ("How the model should behave (optional)", "希望模型如何回答（可不填）"),
    "built_in": (
        "Built in, and used while the box above is empty:",
        "内置的系统提示，上面留空时使用：",
    ),
    "no_built_in": (
        "None is built in: while the box above is empty, the model gets none.",
        "没有内置的系统提示：上面留空时，模型不会收到系统提示。",
    ),
    "preset": ("Sampling", "采样预设"),
    "balanced": ("Balanced", "均衡"),
    "greedy": ("Greedy", "贪心"),
    "creative": ("Creative", "发散"),
    "temperature": ("Temperature", "温度"),
    "top_p": ("Top-p", "Top-p"),
    "top_k": ("Top-k (-1: all)", "Top-k（-1：不限）"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "max_tokens": ("Max tokens", "最多生成 token 数"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "new": ("New chat", "新对话"),
    "export_markdown": ("Save as Markdown", "存为 Markdown"),
    "export_json": ("Save as JSON", "存为 JSON"),
    "export_hint": (
        "JSON holds the first model's complete answers as a training row.",
        "JSON 收录第一个模型的完整回答，可直接当训练数据。",
    ),
    "write": ("Write a message…", "输入消息…"),
    "keys": ("Enter sends · Shift+Enter starts a new line", "回车发送 · Shift+回车换行"),
    "welcome": ("### What would you like to ask?", "### 想问点什么？"),
    # state line
    "ready": ("ready: {models}", "就绪：{models}"),
    "starting": ("starting: the server is loading the model…", "启动中：服务端正在加载模型…"),
    "checked": (
        "being checked: the server opens once it has passed",
        "核验中：通过之后服务端才会开放",
    ),
    "locked": (
        "the server needs a key: set LOCKSTEP_API_KEY and start this page again",
        "服务端需要密钥：设置 LOCKSTEP_API_KEY 后重启本页面",
    ),
    "down": ("not answering at {url}: start it with `{serve}`", "{url} 没有响应：用 `{serve}` 启动服务"),
    "unseen": ("looking for the server…", "正在连接服务端…"),
    "second": ("second endpoint: ", "第二个端点："),
    # what became of an answer
    "waiting": ("thinking…", "思考中…"),
    "stopped": ("stopped by you", "已停止"),
    "broken": ("broke off", "回答中断"),
    "failed": ("no answer", "没有回答"),
    "length": ("cut off at the token limit: raise Max tokens", "达到 token 上限被截断：可调高上限"),
    "uncounted": ("not sent on with later questions", "后续提问不会带上这条"),
    "empty": ("an empty answer", "回答为空"),
    "tokens": ("{n} tokens", "{n} 个 token"),
    "speed": ("{n:.1f} tokens/s", "{n:.1f} token/s"),
    "prompt": ("prompt {n}", "提示词 {n}"),
    "first": ("first after {n:.2f} s", "首字 {n:.2f} 秒"),
    "no_model": ("No model is known yet: the server is not ready.", "服务端尚未就绪，还没有可用的模型。"),
}  # fmt: skip
# The errors of a request in Chinese, by their codes; those that only the server can word stay as it said them.
ERRORS = {
    "no_server": "服务端没有响应，可能已经停止（make serve 启动）",
    "loading": "服务端还在加载模型，请稍候再试",
    "being_checked": "服务端还在核验，通过后才开放，请稍候再试",
    "flooded": "请求太多，服务端忙不过来，请稍候再试（429）",
    "key_wanted": "服务端需要密钥：设置 LOCKSTEP_API_KEY 后重启本页面",
    "silent": "服务端长时间没有回应，可能卡死了",
    "incomplete": "上面的回答不完整：连接或服务端中途断开",
    "broke_off": "回答中断：连接或服务端中途断开",
    "not_ready": "服务端尚未就绪（503）",
}


def say(language: str, key: str, **values: object) -> str:
    """A phrase in `en` or `zh`."""
    return WORDS[key][language == "zh"].format(**{"serve": commands.make("serve"), **values})


def error(language: str, failure: UserError) -> str:
    """An error of a request, or of what was typed, for the reader."""
    return ERRORS.get(failure.code, str(failure)) if language == "zh" else str(failure)
