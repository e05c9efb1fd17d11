"""Lay out the page: Gradio's frame with its tabs, and the column that the reader in `assets/reader.js` fills."""

from typing import Any, cast

import gradio as gr

from app.web.pages import ACTIONS, ALL_ACTIONS, SHOWN_EVENTS, Audits, help_page, model_page
from app.wiring import Services

RESEARCH_USE = "Research use only, not for diagnostic use"
# No handler is an API of its own; /api is.
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
HEAD = """
<meta name="robots" content="noindex">
<link rel="stylesheet" href="hilum/page.css">
<link rel="stylesheet" href="hilum/reader.css">
<script type="module" src="hilum/reader.js"></script>
"""


def page(services: Services) -> gr.Blocks:
    """The whole page. Images, patients and findings never pass through Gradio: the reader asks `/api` for them."""
    audits = Audits(services)
    with gr.Blocks(title=f"Hilum · {RESEARCH_USE}", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="masthead"):
            gr.Markdown("**Hilum**", elem_id="wordmark")
            gr.Markdown(f"**{RESEARCH_USE}**", elem_id="research-use")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Read", id="read"):
                gr.Column(elem_id="reader")
            with gr.Tab("Audit", id="audit") as audit_tab, gr.Column(elem_classes="page"):
                gr.Markdown("# Audit trail")
                with gr.Row(elem_classes="bar-row"):
                    action = gr.Dropdown([ALL_ACTIONS, *ACTIONS], value=ALL_ACTIONS, label="Action", filterable=False)
                    shown = gr.Dropdown(
                        list(SHOWN_EVENTS), value=SHOWN_EVENTS[0], label="Newest events", filterable=False
                    )
                    renew = gr.Button("Show again", variant="secondary")
                    verify = gr.Button("Verify the trail", variant="primary")
                verdict = gr.Markdown(audits.unverified, elem_id="verdict", elem_classes="announced")
                events = gr.Markdown(elem_id="events", latex_delimiters=[])
            with gr.Tab("Model", id="model"), gr.Column(elem_classes="page"):
                gr.Markdown(model_page(services.model), latex_delimiters=[])
            with gr.Tab("Help", id="help"), gr.Column(elem_classes="page"):
                gr.Markdown(help_page(), latex_delimiters=[])
        audit_tab.select(audits.events, [action, shown], events, **PRIVATE)
        for listen in (renew.click, action.change, shown.change):
            listen(audits.events, [action, shown], events, **PRIVATE)
        verify.click(audits.verify, None, verdict, concurrency_id="verify", **PRIVATE)
    return cast(gr.Blocks, blocks)
