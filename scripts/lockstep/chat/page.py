"""What happens when somebody uses the chat page.

Every function here that a browser calls gets that browser's `View`; its answers grow in threads, and
the page is redrawn from them a few times a second.
"""

import html
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from pydantic import ValidationError

from lockstep.chat import phrases
from lockstep.chat.layout import CONTROLS, PRESETS, Parts
from lockstep.chat.side_by_side import Talk, Voice
from lockstep.chat.view import View
from lockstep.client.health import Watch
from lockstep.client.openai_client import Endpoint
from lockstep.endpoint import address
from lockstep.errors import UserError
from lockstep.settings.schema import Sampling
from lockstep.settings.tree import Settings

REDRAW = 0.1  # seconds
NOBODY = ""  # to compare with
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = QUIET | {"queue": False}


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
        suffix = address.BASE_SUFFIX
        if voice.model.endswith(suffix) and voice.model.removesuffix(suffix) in names:
            # beneath an adapter of a QLoRA run lie the dequantized weights
            return f"{voice.model} · {view.say('dequantized' if self.settings.method == 'qlora' else 'base')}"
        if voice.endpoint is not self.endpoints[0]:
            return f"{voice.model} · {voice.endpoint.url.split('/')[2]}"
        return voice.model

    def choices(self, view: View, model: str | None, other: str | None) -> tuple[Any, Any]:
        """The two lists of models; what was chosen stays.

        Until then, and before the first question, the wanted model is shown, with a second endpoint's beside it,
        whichever of the two was ready first.
        """
        voices, other = self.voices(view), other or NOBODY
        untouched = not view.talk.turns and (model is None or (model, other) == view.suggested)
        if untouched or model not in voices:
            model = next((key for key, voice in voices.items() if voice.model == self.wanted), next(iter(voices), None))
        if untouched:
            second = (key for key, voice in voices.items() if voice.endpoint is not self.endpoints[0] and key != model)
            view.suggested = (model, other := next(second, NOBODY))
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
        view.trouble = None if recovered else view.trouble
        return [now[0], *self.choices(view, model, other), self._trouble(view)]

    def send(self, question: str, view: View, *chosen: Any) -> Iterator[list[Any]]:
        if question.strip() and not view.talk.running:
            yield from self._ask(view, question.strip(), len(view.talk.turns), chosen)

    def retry(self, view: View, *chosen: Any) -> Iterator[list[Any]]:
        if view.talk.turns and not view.talk.running:
            yield from self._ask(view, view.talk.turns[-1].question, len(view.talk.turns) - 1, chosen)

    def edit(self, view: View, event: gr.EditData, *chosen: Any) -> Iterator[list[Any]]:
        yield from self._edit(view, 0, event, chosen)

    def edit_second(self, view: View, event: gr.EditData, *chosen: Any) -> Iterator[list[Any]]:
        yield from self._edit(view, 1, event, chosen)

    def _edit(self, view: View, pane: int, event: gr.EditData, chosen: tuple[Any, ...]) -> Iterator[list[Any]]:
        """Ask an earlier question in other words; what came after it is forgotten."""
        if view.talk.running or not str(event.value).strip():
            yield self._drawn(view, running=view.talk.running)
        else:
            yield from self._ask(view, str(event.value).strip(), view.turn_at(pane, event.index), chosen)

    def stop(self, view: View) -> None:
        view.talk.stop()

    def clear(self, view: View) -> list[Any]:
        view.talk.stop()
        view.talk, view.trouble = Talk(), None
        return self._drawn(view, box="")

    def _ask(self, view: View, question: str, place: int, chosen: tuple[Any, ...]) -> Iterator[list[Any]]:
        """Have a question answered as the turn in a place. Where nobody answers, all is as it was before."""
        model, other, system, *values = chosen
        voices = self.voices(view)
        named = [voices[key] for key in (model, other) if key in voices]
        before, view.trouble = list(view.talk.turns), None
        try:
            changed = dict(zip(CONTROLS, values, strict=True))
            sampling = Sampling.model_validate(self.settings.sampling.model_dump() | changed)
        except ValidationError as error:
            wrong = error.errors()[0]
            view.trouble = UserError(f"{wrong['loc'][0]}: {wrong['msg']}")
        if not named:
            view.trouble = UserError(view.say("no_model"))
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
            view.trouble = turn.replies[0].error
        yield self._drawn(view, box=question if failed and place == len(before) else None)

    def _trouble(self, view: View) -> str:
        if view.trouble is None:
            return ""
        return f'<div class="trouble" role="alert">{html.escape(phrases.error(view.language, view.trouble))}</div>'

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
        """The page in a language. → language, panes, state, models, trouble, and the other parts that hold words"""
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

    # ---- the page ----

    def build(self) -> Any:
        """The page. Nothing of it is an interface for programs."""
        with gr.Blocks(title="Lockstep", analytics_enabled=False, fill_height=True, fill_width=True) as page:
            parts = Parts(self.settings.sampling)
            self._wire_conversation(parts)
            self._wire_settings(parts, page)
        return page

    def _wire_conversation(self, parts: Parts) -> None:
        chosen = [parts.view, parts.model, parts.other, parts.system, *parts.controls]
        drawn = [*parts.panes, parts.box, parts.send, parts.stop, parts.trouble]
        asking = QUIET | {"concurrency_limit": 32}
        gr.on([parts.send.click, parts.box.submit], self.send, [parts.box, *chosen], drawn, **asking)
        for pane, edit in zip(parts.panes, (self.edit, self.edit_second), strict=True):
            pane.retry(self.retry, chosen, drawn, **asking)
            pane.edit(edit, chosen, drawn, **asking)
        parts.stop.click(self.stop, [parts.view], None, **AT_ONCE)
        parts.new.click(self.clear, [parts.view], drawn, **AT_ONCE)
        for button, made, name in ((parts.markdown, _markdown, "chat.md"), (parts.rows, _rows, "chat.json")):
            said = button.click(made, [parts.view], parts.file, **AT_ONCE)
            said.then(None, parts.file, None, js=f"(text) => lockstepSave(text, '{name}')", **QUIET)

    def _wire_settings(self, parts: Parts, page: Any) -> None:
        spoken = [parts.view, parts.language, parts.model, parts.other]
        models = [parts.view, parts.model, parts.other]
        parts.preset.input(_values_of, parts.preset, parts.controls, **AT_ONCE)
        gr.on([parts.model.change, parts.other.change], self.name_panes, models, parts.panes, **AT_ONCE)
        # in the order in which `relabel` gives them
        labelled = [
            parts.language, *parts.panes, parts.state, parts.trouble, parts.preset, parts.model, parts.other,
            parts.system, *parts.controls, parts.send, parts.stop, parts.new, parts.markdown, parts.rows, parts.box,
            parts.hint, parts.export_hint,
        ]  # fmt: skip
        parts.language.input(self.relabel, spoken, labelled, js="(...all) => lockstepSpeak(all)", **AT_ONCE)
        page.load(self.relabel, spoken, labelled, js="(...all) => lockstepGreet(all)", **AT_ONCE)
        timer = gr.Timer(self.settings.ui.check_seconds)
        timer.tick(self.look, models, [parts.state, parts.model, parts.other, parts.trouble], **AT_ONCE)

    def name_panes(self, view: View, model: str | None, other: str | None) -> list[Any]:
        """The panes with the names of what answers in them."""
        voices = self.voices(view)
        labels = [voices[key].label if key in voices else "" for key in (model, other or NOBODY)]
        return [
            gr.update(label=labels[0], show_label=bool(labels[1])),
            gr.update(label=labels[1], show_label=True, visible=bool(labels[1])),
        ]


def _values_of(preset: str) -> list[float]:
    return [getattr(PRESETS[preset], key) for key in CONTROLS]


def _markdown(view: View) -> str:
    return view.talk.markdown()


def _rows(view: View) -> str:
    return view.talk.rows()
