"""What happens when somebody uses the chat page.

Every method that a browser calls gets that browser's `View`. Answers arrive in threads, and the page is
redrawn from them a few times a second.
"""

import html
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
from pydantic import ValidationError

from lockstep.chat import phrases
from lockstep.chat.controls import CONTROLS, PRESETS
from lockstep.chat.layout import Parts
from lockstep.chat.side_by_side import ChatSession, ServedModel
from lockstep.chat.view import View
from lockstep.client.health import Watch
from lockstep.client.openai_client import Endpoint
from lockstep.endpoint import address
from lockstep.errors import UserError
from lockstep.settings.schema import Sampling
from lockstep.settings.tree import Settings

REDRAW = 0.1  # seconds
NO_MODEL = ""  # what is chosen under "Compare with" where nothing is compared
# how Gradio runs a method: without a progress bar, and not as an API; at once, without waiting for running answers
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = QUIET | {"queue": False}


class Page:
    """The page, on the server's side.

    Args:
        endpoints: one, or two to compare.
        watch: knows how the endpoints are.
        preferred: the name of the model to choose at first, if it is offered.
        built_in: the system prompt of the run's template; empty where it has none, None where it is not known.
    """

    def __init__(
        self,
        settings: Settings,
        endpoints: list[Endpoint],
        watch: Watch,
        preferred: str,
        built_in: str | None = None,
    ) -> None:
        self.settings, self.endpoints, self.watch, self.preferred = settings, endpoints, watch, preferred
        self.built_in = built_in
        self.known: dict[str, ServedModel] = {}  # what was offered when the endpoints were last ready

    # ---- the models ----

    def models(self, view: View) -> dict[str, ServedModel]:
        """Every model that is offered, with its label in the view's language, by a key that does not change."""
        for number, (endpoint, health) in enumerate(zip(self.endpoints, self.watch.seen, strict=True)):
            if health and health.kind == "ready":
                of_others = {key: model for key, model in self.known.items() if model.endpoint is not endpoint}
                offered = {f"{number} {name}": ServedModel(endpoint, name, name) for name in health.models}
                self.known = dict(sorted((of_others | offered).items(), key=lambda item: item[0][0]))
        return {key: replace(model, label=self._label(view, model)) for key, model in self.known.items()}

    def _label(self, view: View, served: ServedModel) -> str:
        names = {other.model for other in self.known.values() if other.endpoint is served.endpoint}
        suffix = address.BASE_SUFFIX
        if served.model.endswith(suffix) and served.model.removesuffix(suffix) in names:
            # an adapter of a QLoRA run is served on the dequantized weights
            return f"{served.model} · {view.say('dequantized' if self.settings.method == 'qlora' else 'base')}"
        if served.endpoint is not self.endpoints[0]:
            return f"{served.model} · {served.endpoint.url.split('/')[2]}"
        return served.model

    def choices(self, view: View, model: str | None, other: str | None) -> tuple[Any, Any]:
        """The two lists of models, in which the reader's choice stays.

        Before the reader has chosen or asked anything, the preferred model is chosen and a second endpoint's model
        beside it, whichever endpoint was ready first.
        """
        models, other = self.models(view), other or NO_MODEL
        untouched = not view.session.turns and (model is None or (model, other) == view.suggested)
        if untouched or model not in models:
            model = self._first_choice(models)
        if untouched:
            second = [
                key for key, served in models.items() if served.endpoint is not self.endpoints[0] and key != model
            ]
            other = second[0] if second else NO_MODEL
            view.suggested = model, other
        labels = [(served.label, key) for key, served in models.items()]
        compared = [(view.say("nobody"), NO_MODEL), *((label, key) for label, key in labels if key != model)]
        if other not in [key for _, key in compared]:
            other = NO_MODEL
        return gr.update(choices=labels, value=model), gr.update(choices=compared, value=other)

    def _first_choice(self, models: dict[str, ServedModel]) -> str | None:
        preferred = [key for key, served in models.items() if served.model == self.preferred]
        return next(iter(preferred or models), None)

    def state(self, view: View) -> str:
        """The state line."""
        lines = []
        for number, (endpoint, health) in enumerate(zip(self.endpoints, self.watch.seen, strict=True)):
            kind = health.kind if health else "unseen"
            names = ", ".join(health.models) if health else ""
            text = (view.say("second") if number else "") + view.say(kind, models=names, url=endpoint.url)
            lines.append(f'<span class="state {kind}"><i></i>{html.escape(text)}</span>')
        return f'<div role="status">{"".join(lines)}</div>'

    # ---- what the reader does ----

    def refresh(self, view: View, model: str | None, other: str | None) -> list[Any]:
        """Redraw the state where it has changed. → state, model, compare, trouble"""
        state = self.state(view)
        current = (state, [*self.models(view)], view.language, model, other)
        if current == view.drawn:
            return [gr.skip()] * 4
        ready = all(health and health.kind == "ready" for health in self.watch.seen)
        if view.drawn and view.drawn[0] != state and ready:  # what failed before may work now
            view.trouble = None
        view.drawn = current
        return [state, *self.choices(view, model, other), self._trouble(view)]

    def send(self, question: str, view: View, *chosen: Any) -> Iterator[list[Any]]:
        if question.strip() and not view.session.running:
            yield from self._ask(view, question.strip(), len(view.session.turns), chosen)

    def retry(self, view: View, *chosen: Any) -> Iterator[list[Any]]:
        if view.session.turns and not view.session.running:
            yield from self._ask(view, view.session.turns[-1].question, len(view.session.turns) - 1, chosen)

    def edit(self, view: View, event: gr.EditData, *chosen: Any) -> Iterator[list[Any]]:
        yield from self._edit(view, 0, event, chosen)

    def edit_second(self, view: View, event: gr.EditData, *chosen: Any) -> Iterator[list[Any]]:
        yield from self._edit(view, 1, event, chosen)

    def _edit(self, view: View, pane: int, event: gr.EditData, chosen: tuple[Any, ...]) -> Iterator[list[Any]]:
        """Ask an earlier question in other words; everything after it is forgotten."""
        if view.session.running or not str(event.value).strip():
            yield self._drawn(view, running=view.session.running)
        else:
            yield from self._ask(view, str(event.value).strip(), view.turn_at(pane, event.index), chosen)

    def stop(self, view: View) -> None:
        view.session.stop()

    def clear(self, view: View) -> list[Any]:
        view.session.stop()
        view.session, view.trouble = ChatSession(), None
        return self._drawn(view, box="")

    def _ask(self, view: View, question: str, place: int, chosen: tuple[Any, ...]) -> Iterator[list[Any]]:
        """Ask a question as the turn at a place. If no model answers, everything is as it was before.

        Args:
            chosen: the two models' keys, the system prompt, and the values of the controls.
        """
        model, other, system, *values = chosen
        models = self.models(view)
        asked = [models[key] for key in (model, other) if key in models]
        view.trouble = None
        try:
            changed = dict(zip(CONTROLS, values, strict=True))
            sampling = Sampling.model_validate(self.settings.sampling.model_dump() | changed)
        except ValidationError as error:
            first = error.errors()[0]
            view.trouble = UserError(f"{first['loc'][0]}: {first['msg']}")
        if not asked:
            view.trouble = UserError(view.say("no_model"))
        if view.trouble:
            yield self._drawn(view, box=question)
            return

        session = view.session
        turns_before = list(session.turns)
        del session.turns[place:]
        turn = session.ask(question, asked, sampling, system)
        try:
            yield self._drawn(view, box="", running=True)
            while session.running:
                time.sleep(REDRAW)
                if session is not view.session:  # "New chat" was pressed meanwhile
                    return
                # to the last, as Gradio takes no other question before this event has ended
                yield self._drawn(view, running=True)
        finally:  # also where the browser has gone
            session.stop()
        if session is not view.session:
            return
        failed = all(reply.state == "failed" for reply in turn.replies)
        if failed:
            session.turns[:] = turns_before
            view.trouble = turn.replies[0].error
        new_question = place == len(turns_before)
        yield self._drawn(view, box=question if failed and new_question else None)

    def _trouble(self, view: View) -> str:
        if view.trouble is None:
            return ""
        return f'<div class="trouble" role="alert">{html.escape(phrases.error(view.language, view.trouble))}</div>'

    def _drawn(self, view: View, box: str | None = None, running: bool = False) -> list[Any]:
        """The conversation as it is now. → pane, second pane, box, send, stop, trouble"""
        return [
            view.history(0),
            view.history(1),
            gr.skip() if box is None else box,
            gr.update(visible=not running),
            gr.update(visible=running),
            self._trouble(view),
        ]

    def relabel(self, view: View, language: str, model: str | None, other: str | None) -> list[Any]:
        """The page in a language. → language, panes, state, trouble, and the other parts that hold words"""
        view.language = language
        view.drawn = None
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
        hints.append(self._built_in(view))
        return [language, *panes, self.state(view), self._trouble(view), presets, *texts, *buttons, box, *hints]

    def _built_in(self, view: View) -> str:
        """The system prompt that the model gets while the reader gives none."""
        if self.built_in is None:
            return ""
        if not self.built_in:
            return f'<p class="hint">{view.say("no_built_in")}</p>'
        return f'<p class="hint">{view.say("built_in")}</p><blockquote>{html.escape(self.built_in)}</blockquote>'

    # ---- the page ----

    def build(self) -> Any:
        """The page as a `gr.Blocks`. Programs are offered no API."""
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
        for button, export, name in ((parts.markdown, _markdown, "chat.md"), (parts.rows, _rows, "chat.json")):
            exported = button.click(export, [parts.view], parts.file, **AT_ONCE)
            exported.then(None, parts.file, None, js=f"(text) => lockstepSave(text, '{name}')", **QUIET)

    def _wire_settings(self, parts: Parts, page: Any) -> None:
        spoken = [parts.view, parts.language, parts.model, parts.other]
        models = [parts.view, parts.model, parts.other]
        parts.preset.input(_values_of, parts.preset, parts.controls, **AT_ONCE)
        gr.on([parts.model.change, parts.other.change], self.name_panes, models, parts.panes, **AT_ONCE)
        # in the order in which `relabel` gives them
        labelled = [
            parts.language,
            *parts.panes,
            parts.state,
            parts.trouble,
            parts.preset,
            parts.model,
            parts.other,
            parts.system,
            *parts.controls,
            parts.send,
            parts.stop,
            parts.new,
            parts.markdown,
            parts.rows,
            parts.box,
            parts.hint,
            parts.export_hint,
            parts.built_in,
        ]
        parts.language.input(self.relabel, spoken, labelled, js="(...all) => lockstepSpeak(all)", **AT_ONCE)
        page.load(self.relabel, spoken, labelled, js="(...all) => lockstepGreet(all)", **AT_ONCE)
        timer = gr.Timer(self.settings.ui.check_seconds)
        timer.tick(self.refresh, models, [parts.state, parts.model, parts.other, parts.trouble], **AT_ONCE)

    def name_panes(self, view: View, model: str | None, other: str | None) -> list[Any]:
        """Head the panes with the models that answer in them; the second is shown only where there is one."""
        models = self.models(view)
        first, second = (models[key].label if key in models else "" for key in (model, other or NO_MODEL))
        return [
            gr.update(label=first, show_label=bool(second)),
            gr.update(label=second, show_label=True, visible=bool(second)),
        ]


def _values_of(preset: str) -> list[float]:
    return [getattr(PRESETS[preset], key) for key in CONTROLS]


def _markdown(view: View) -> str:
    return view.session.markdown()


def _rows(view: View) -> str:
    return view.session.rows()
