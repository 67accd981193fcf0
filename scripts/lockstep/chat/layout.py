"""The parts of the chat page: what stands where, and how it looks. `page` says what they do."""

from pathlib import Path
from typing import Any

import gradio as gr

from lockstep.chat.controls import CONTROLS, PRESETS, STEPS, preset_of, slider_ends
from lockstep.chat.view import View
from lockstep.settings.schema import Sampling

CSS, SCRIPT = Path(__file__).with_name("page.css"), Path(__file__).with_name("page.js")
FONTS = [
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "sans-serif",
]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Noto Sans Mono CJK SC", "monospace"]


def theme() -> Any:
    """Fonts of the reader's own machine only: nothing is fetched."""
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", radius_size="lg", spacing_size="md", font=FONTS, font_mono=MONO
    )


class Parts:
    """All parts of the page. Create it inside a `gr.Blocks`.

    Args:
        sampling: what the controls show at first.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.view = gr.State(View())
        with gr.Sidebar(open=True, width=344, elem_id="settings"):
            self._settings(sampling)
        with gr.Row(elem_id="head"):
            self._head()
        with gr.Row(elem_id="panes"):
            self.panes = [_pane("pane", True), _pane("pane2", False)]
        self.trouble = gr.HTML(elem_id="trouble")
        with gr.Row(elem_id="ask"):
            self._ask()
        self.hint = gr.HTML(elem_id="hint")
        self.file = gr.Textbox(visible="hidden", elem_id="file")  # carries what the browser is to save

    def _settings(self, sampling: Sampling) -> None:
        self.model = gr.Dropdown(label="Model", elem_id="model", filterable=False)
        self.other = gr.Dropdown(label="Compare with", elem_id="compare", filterable=False)
        self.system = gr.Textbox(label="System prompt", lines=2, max_lines=8, elem_id="system")
        self.built_in = gr.HTML(elem_id="built-in")
        self.preset = gr.Radio([*PRESETS], value=preset_of(sampling), label="Sampling", elem_id="preset")
        self.controls = [_control(name, getattr(sampling, name)) for name in CONTROLS]
        with gr.Row():
            self.markdown = gr.Button("Save as Markdown", size="sm", elem_id="markdown", min_width=100)
            self.rows = gr.Button("Save as JSON", size="sm", elem_id="json", min_width=100)
        self.export_hint = gr.HTML()

    def _head(self) -> None:
        gr.HTML("<h1>Lockstep</h1>", elem_id="title")
        self.state = gr.HTML(elem_id="state")
        self.new = gr.Button("New chat", size="sm", elem_id="new", min_width=80, scale=0)
        self.language = gr.Radio(
            [("EN", "en"), ("中文", "zh")],
            value="en",
            show_label=False,
            container=False,
            elem_id="language",
            min_width=110,
            scale=0,
        )

    def _ask(self) -> None:
        self.box = gr.Textbox(
            show_label=False, container=False, lines=1, max_lines=8, autofocus=True, scale=1, elem_id="box"
        )
        self.send = gr.Button("Send", variant="primary", elem_id="send", min_width=80, scale=0)
        self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop", min_width=80, scale=0)


def _pane(name: str, visible: bool) -> Any:
    return gr.Chatbot(
        elem_id=name,
        visible=visible,
        show_label=False,
        editable="user",
        buttons=["copy"],
        layout="bubble",
        height="100%",
        min_width=260,
        group_consecutive_messages=False,
        feedback_options=None,
        reasoning_tags=[("<think>", "</think>")],
    )


def _control(name: str, value: float) -> Any:
    if name == "max_tokens":
        return gr.Number(value=value, label=name, precision=0, minimum=1, elem_id=name)
    low, high = slider_ends(name)
    return gr.Slider(min(low, value), max(high, value), value, step=STEPS[name], label=name, elem_id=name)
