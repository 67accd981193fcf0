"""The chat page: its parts, and what happens when somebody uses them. `talk` knows nothing of it.

Every function here that a browser calls gets that browser's `View`; its answers grow in threads, and
the page is redrawn from them a few times a second.
"""

import html
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError

from lockstep import words
from lockstep.asking import Endpoint
from lockstep.config import Sampling, Settings
from lockstep.health import Watch
from lockstep.talk import Reply, Talk, Voice

CSS, SCRIPT = Path(__file__).with_name("chatpage.css"), Path(__file__).with_name("chatpage.js")
REDRAW = 0.1  # seconds
NOBODY = ""  # to compare with
CONTROLS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
PRESETS = {
    "balanced": Sampling(),
    "greedy": Sampling(temperature=0, top_p=1, top_k=-1, repetition_penalty=1),
    "creative": Sampling(temperature=1, top_p=0.95, top_k=100, repetition_penalty=1.05, max_tokens=512),
}
RANGES = {"temperature": (0, 2, 0.05), "top_p": (0.05, 1, 0.05), "top_k": (-1, 200, 1), "repetition_penalty": (0.8, 2, 0.05)}  # fmt: skip
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei",
         "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "sans-serif"]  # fmt: skip
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Noto Sans Mono CJK SC", "monospace"]


def theme() -> Any:
    """Fonts of the reader's own machine only: nothing is fetched."""
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", radius_size="lg", spacing_size="md", font=FONTS, font_mono=MONO
    )


class View:
    """What one browser sees.

    Attributes:
        shown: the state line and the models, as drawn last.
        trouble: why the last question has no answer.
    """

    def __init__(self) -> None:
        self.talk, self.language, self.trouble = Talk(), "en", ""
        self.shown: Any = None

    def say(self, key: str, **values: object) -> str:
        return words.say(self.language, key, **values)

    def history(self, place: int) -> list[dict[str, str]]:
        """A pane's messages, as Gradio wants them: each answer is followed by a note on it."""
        said = []
        for turn in self.talk.turns:
            said.append({"role": "user", "content": turn.question})
            if place < len(turn.replies):
                reply = turn.replies[place]
                said += [{"role": "assistant", "content": reply.text}] if reply.text else []
                said.append({"role": "assistant", "content": self.note(reply)})
        return said

    def note(self, reply: Reply) -> str:
        """What became of an answer, its tokens and its speed."""
        if reply.state == "running" and not reply.text:
            return f'<span class="note waiting">{self.say("waiting")}</span>'
        parts = []
        if reply.state in ("stopped", "broken", "failed", "length"):
            reason = f": {words.error(self.language, reply.reason)}" if reply.reason else ""
            parts.append(f'<b class="mark">{self.say(reply.state)}{html.escape(reason)}</b>')
            parts += [self.say("uncounted")] if reply.state != "length" else []
        elif not reply.text:
            parts.append(self.say("empty"))
        if reply.tokens:
            exact = reply.state in ("whole", "length")
            parts.append(("" if exact else "≈ ") + self.say("tokens", n=reply.tokens))
            parts += [self.say("speed", n=reply.speed)] if reply.speed else []
        if reply.first is not None and reply.state != "running":
            parts.append(self.say("first", n=reply.first))
        if reply.prompt_tokens is not None:
            parts.append(self.say("prompt", n=reply.prompt_tokens))
        return f'<span class="note">{" · ".join(parts)}</span>'

    def turn_at(self, message: int) -> int:
        """Which turn a pane's message belongs to, by its place in `history(0)`."""
        seen = -1
        for turn, entry in enumerate(self.talk.turns):
            seen += 2 + bool(entry.replies[0].text)
            if message <= seen:
                return turn
        return len(self.talk.turns) - 1


class Page:
    """The page and its server's side.

    Args:
        endpoints: one, or two to compare.
        wanted: the name of the model to talk to first, if it is offered.
    """

    def __init__(self, settings: Settings, endpoints: list[Endpoint], watch: Watch, wanted: str) -> None:
        self.settings, self.endpoints, self.watch, self.wanted = settings, endpoints, watch, wanted
        self.known: dict[str, Voice] = {}  # what was on offer when the endpoints were last ready

    # ---- the models ----

    def voices(self, view: View) -> dict[str, Voice]:
        """Every model on offer, by a key that stays the same."""
        for number, (endpoint, seen) in enumerate(zip(self.endpoints, self.watch.seen, strict=True)):
            if seen and seen.kind == "ready":
                kept = {key: voice for key, voice in self.known.items() if voice.endpoint is not endpoint}
                found = {f"{number} {name}": Voice(endpoint, name, name) for name in seen.models}
                self.known = dict(sorted((kept | found).items(), key=lambda item: item[0][0]))
        return {key: Voice(v.endpoint, v.model, self._label(view, v)) for key, v in self.known.items()}

    def _label(self, view: View, voice: Voice) -> str:
        names = {other.model for other in self.known.values() if other.endpoint is voice.endpoint}
        if voice.model.endswith("-base") and voice.model.removesuffix("-base") in names:
            # beneath an adapter of a QLoRA run lie the dequantized weights
            return f"{voice.model} · {view.say('dequantized' if self.settings.method == 'qlora' else 'base')}"
        if voice.endpoint is not self.endpoints[0]:
            return f"{voice.model} · {voice.endpoint.url.split('/')[2]}"
        return voice.model

    def choices(self, view: View, model: str | None, other: str | None) -> tuple[Any, Any]:
        """The two lists of models; what was chosen stays, and at first base and tuned stand side by side if a second endpoint is given."""
        voices = self.voices(view)
        if model not in voices:
            model = next((key for key, voice in voices.items() if voice.model == self.wanted), next(iter(voices), None))
            second = [key for key, voice in voices.items() if voice.endpoint is not self.endpoints[0]]
            other = second[0] if second and not other else other
        named = [(voice.label, key) for key, voice in voices.items()]
        rest = [(view.say("nobody"), NOBODY), *((label, key) for label, key in named if key != model)]
        other = other if other in dict(map(reversed, rest)) else NOBODY  # type: ignore[arg-type]
        return gr.update(choices=named, value=model), gr.update(choices=rest, value=other)

    def state(self, view: View) -> str:
        """The state line."""
        lines = []
        for number, (endpoint, seen) in enumerate(zip(self.endpoints, self.watch.seen, strict=True)):
            kind = seen.kind if seen else "unseen"
            names = ", ".join(seen.models) if seen else ""
            text = (view.say("second") if number else "") + view.say(kind, models=names, url=endpoint.url)
            lines.append(f'<span class="state {kind}"><i></i>{html.escape(text)}</span>')
        return f'<div role="status">{"".join(lines)}</div>'

    # ---- what the reader does ----

    def look(self, view: View, model: str | None, other: str | None) -> list[Any]:
        """Draw the state anew where it has changed. → state, model, compare, trouble"""
        now = (self.state(view), [*self.voices(view)], view.language, model, other)
        if now == view.shown:
            return [gr.skip()] * 4
        recovered = (
            view.shown and view.shown[0] != now[0] and all(one and one.kind == "ready" for one in self.watch.seen)
        )
        view.shown = now
        view.trouble = "" if recovered else view.trouble
        return [now[0], *self.choices(view, model, other), self._trouble(view)]

    def send(self, view: View, question: str, *chosen: Any) -> Iterator[list[Any]]:
        if question.strip() and not view.talk.running:
            yield from self._ask(view, question.strip(), len(view.talk.turns), chosen)

    def retry(self, view: View, *chosen: Any) -> Iterator[list[Any]]:
        if view.talk.turns and not view.talk.running:
            yield from self._ask(view, view.talk.turns[-1].question, len(view.talk.turns) - 1, chosen)

    def edit(self, view: View, event: gr.EditData, *chosen: Any) -> Iterator[list[Any]]:
        """Ask an earlier question in other words; what came after it is forgotten."""
        if view.talk.running or not str(event.value).strip():
            yield self._drawn(view)
        else:
            yield from self._ask(view, str(event.value).strip(), view.turn_at(event.index), chosen)

    def stop(self, view: View) -> None:
        view.talk.stop()

    def clear(self, view: View) -> list[Any]:
        view.talk.stop()
        view.talk, view.trouble = Talk(), ""
        return self._drawn(view, box="")

    def _ask(self, view: View, question: str, place: int, chosen: tuple[Any, ...]) -> Iterator[list[Any]]:
        """Have a question answered as the turn in a place. Where nobody answers, all is as it was before."""
        model, other, system, *values = chosen
        voices = self.voices(view)
        named = [voices[key] for key in (model, other) if key in voices]
        before, view.trouble = list(view.talk.turns), ""
        try:
            changed = dict(zip(CONTROLS, values, strict=True))
            sampling = Sampling.model_validate(self.settings.sampling.model_dump() | changed)
        except ValidationError as error:
            wrong = error.errors()[0]
            view.trouble = f"{wrong['loc'][0]}: {wrong['msg']}"
        if not named:
            view.trouble = view.say("no_model")
        if view.trouble:
            yield self._drawn(view, box=question)
            return
        del view.talk.turns[place:]
        talk = view.talk
        turn = talk.ask(question, named, sampling, system)
        try:
            yield self._drawn(view, box="", running=True)
            while talk.running:
                time.sleep(REDRAW)
                if talk is not view.talk:  # cleared meanwhile
                    return
                yield self._drawn(view, running=talk.running)
        finally:  # the browser may have gone
            talk.stop()
        if talk is not view.talk:
            return
        failed = all(reply.state == "failed" for reply in turn.replies)
        if failed:
            talk.turns[:] = before
            view.trouble = turn.replies[0].reason
        yield self._drawn(view, box=question if failed and place == len(before) else None)

    def _trouble(self, view: View) -> str:
        text = words.error(view.language, view.trouble)
        return f'<div class="trouble" role="alert">{html.escape(text)}</div>' if text else ""

    def _drawn(self, view: View, box: str | None = None, running: bool = False) -> list[Any]:
        """→ pane, second pane, box, send, stop, trouble"""
        return [
            view.history(0),
            view.history(1),
            gr.skip() if box is None else box,
            gr.update(visible=not running),
            gr.update(visible=running),
            self._trouble(view),
        ]

    def relabel(self, view: View, language: str, model: str | None, other: str | None) -> list[Any]:
        """The page in a language. → language, panes, state, models, trouble, and the parts of `_labelled`"""
        view.language = language
        view.shown = None
        say = view.say
        welcome = gr.update(placeholder=say("welcome"))
        presets = gr.update(label=say("preset"), choices=[(say(name), name) for name in PRESETS])
        texts = [gr.update(label=say(key)) for key in ("model", "compare", "system", *CONTROLS)]
        first, second = self.choices(view, model, other)
        texts[0] |= first
        texts[1] |= second
        texts[2] |= {"placeholder": say("system_hint")}
        buttons = [gr.update(value=say(key)) for key in ("send", "stop", "new", "export_markdown", "export_json")]
        box = gr.update(placeholder=say("write"))
        hints = [f'<p class="hint">{say(key)}</p>' for key in ("keys", "export_hint")]
        panes = [gr.update(value=view.history(place)) | welcome for place in (0, 1)]
        return [language, *panes, self.state(view), self._trouble(view), presets, *texts, *buttons, box, *hints]

    # ---- the parts ----

    def build(self) -> Any:
        """The page. Nothing of it is an interface for programs."""
        with gr.Blocks(title="Lockstep", analytics_enabled=False, fill_height=True, fill_width=True) as page:
            view = gr.State(View())
            with gr.Sidebar(open=True, width=320, elem_id="settings"):
                model = gr.Dropdown(label="Model", elem_id="model", filterable=False)
                other = gr.Dropdown(label="Compare with", elem_id="compare", filterable=False)
                system = gr.Textbox(label="System prompt", lines=2, max_lines=8, elem_id="system")
                preset = gr.Radio([*PRESETS], value=self._preset(), label="Sampling", elem_id="preset")
                controls = [self._control(name) for name in CONTROLS]
                with gr.Row():
                    markdown = gr.Button("Save as Markdown", size="sm", elem_id="markdown", min_width=100)
                    rows = gr.Button("Save as JSON", size="sm", elem_id="json", min_width=100)
                export_hint = gr.HTML()
            with gr.Row(elem_id="head"):
                gr.HTML("<h1>Lockstep</h1>", elem_id="title")
                state = gr.HTML(elem_id="state")
                new = gr.Button("New chat", size="sm", elem_id="new", min_width=80, scale=0)
                language = gr.Radio([("EN", "en"), ("中文", "zh")], value="en", show_label=False, container=False,
                                    elem_id="language", min_width=110, scale=0)  # fmt: skip
            with gr.Row(elem_id="panes"):
                panes = [self._pane("pane", True), self._pane("pane2", False)]
            trouble = gr.HTML(elem_id="trouble")
            with gr.Row(elem_id="ask"):
                box = gr.Textbox(show_label=False, container=False, lines=1, max_lines=8, autofocus=True, scale=1,
                                 elem_id="box", placeholder="Write a message…")  # fmt: skip
                send = gr.Button("Send", variant="primary", elem_id="send", min_width=80, scale=0)
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop", min_width=80, scale=0)
            hint = gr.HTML(elem_id="hint")
            file = gr.Textbox(visible="hidden", elem_id="file")

            chosen = [model, other, system, *controls]
            drawn = [*panes, box, send, stop, trouble]
            quiet = {"show_progress": "hidden", "api_visibility": "private"}
            asking = quiet | {"concurrency_limit": 32}
            at_once = quiet | {"queue": False}
            gr.on([send.click, box.submit], self.send, [view, box, *chosen], drawn, **asking)
            for pane in panes:
                pane.retry(self.retry, [view, *chosen], drawn, **asking)
                pane.edit(self.edit, [view, *chosen], drawn, **asking)
            stop.click(self.stop, [view], None, **at_once)
            new.click(self.clear, [view], drawn, **at_once)
            preset.input(lambda name: [getattr(PRESETS[name], key) for key in CONTROLS], preset, controls, **at_once)
            other.change(self._panes, [view, model, other], panes, **at_once)
            model.change(self._panes, [view, model, other], panes, **at_once)
            for button, made, name in ((markdown, Talk.markdown, "chat.md"), (rows, Talk.rows, "chat.json")):
                said = button.click(lambda view, made=made: made(view.talk), [view], file, **at_once)
                said.then(None, file, None, js=f"(text) => lockstepSave(text, '{name}')", **quiet)
            labelled = [preset, *chosen, send, stop, new, markdown, rows, box, hint, export_hint]
            shown = [language, *panes, state, trouble, *labelled]
            spoken = [view, language, model, other]
            language.input(self.relabel, spoken, shown, js="(...all) => lockstepSpeak(all)", **at_once)
            page.load(self.relabel, spoken, shown, js="(...all) => lockstepGreet(all)", **at_once)
            timer = gr.Timer(self.settings.ui.check_seconds)
            timer.tick(self.look, [view, model, other], [state, model, other, trouble], **at_once)
        return page

    def _panes(self, view: View, model: str | None, other: str | None) -> list[Any]:
        """The panes with the names of what answers in them."""
        voices = self.voices(view)
        labels = [voices[key].label if key in voices else "" for key in (model, other or NOBODY)]
        return [
            gr.update(label=labels[0], show_label=bool(labels[1])),
            gr.update(label=labels[1], show_label=True, visible=bool(labels[1])),
        ]

    def _pane(self, name: str, visible: bool) -> Any:
        return gr.Chatbot(
            elem_id=name, visible=visible, show_label=False, editable="user", buttons=["copy"], layout="bubble",
            height="100%", min_width=260, group_consecutive_messages=False, reasoning_tags=[("<think>", "</think>")], feedback_options=None,
        )  # fmt: skip

    def _preset(self) -> str | None:
        """The preset that the settings are, if they are one."""
        ours = [getattr(self.settings.sampling, key) for key in CONTROLS]
        return next((name for name, one in PRESETS.items() if [getattr(one, key) for key in CONTROLS] == ours), None)

    def _control(self, name: str) -> Any:
        value = getattr(self.settings.sampling, name)
        if name == "max_tokens":
            return gr.Number(value=value, label=name, precision=0, minimum=1, elem_id=name)
        low, high, step = RANGES[name]
        return gr.Slider(min(low, value), max(high, value), value, step=step, label=name, elem_id=name)
