"""The dark, calm colours of the page, told to Gradio's components; the style sheets use the same ones by name."""

from gradio.themes import Base

GROUND = "#0a0d10"  # behind everything; near black, so that a dark film keeps its contrast
PANEL = "#11161b"
CONTROL = "#1a2128"
CONTROL_HOVER = "#232c35"
LINE = "#2c3640"
EDGE = "#5d6c7a"  # the outline of a control: 3:1 on the panel (WCAG 2.2, 1.4.11)
TEXT = "#dde4ea"
QUIET = "#a3b0bc"
ACCENT = "#62bdd8"
SYSTEM_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "DejaVu Sans", "sans-serif")
SYSTEM_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "Liberation Mono", "DejaVu Sans Mono", "monospace")


def theme() -> Base:
    """Gradio's plain theme in Hilum's colours, the same ones whatever the browser prefers; no font is fetched."""
    colours = {
        "body_background_fill": GROUND,
        "body_text_color": TEXT,
        "body_text_color_subdued": QUIET,
        "background_fill_primary": PANEL,
        "background_fill_secondary": CONTROL,
        "border_color_primary": LINE,
        "border_color_accent": ACCENT,
        "color_accent_soft": CONTROL_HOVER,
        "link_text_color": ACCENT,
        "link_text_color_active": ACCENT,
        "link_text_color_hover": TEXT,
        "link_text_color_visited": ACCENT,
        "code_background_fill": CONTROL,
        "block_background_fill": PANEL,
        "block_border_color": LINE,
        "block_label_background_fill": PANEL,
        "block_label_text_color": QUIET,
        "block_title_text_color": QUIET,
        "block_info_text_color": QUIET,
        "input_background_fill": CONTROL,
        "input_background_fill_focus": CONTROL,
        "input_background_fill_hover": CONTROL_HOVER,
        "input_border_color": EDGE,
        "input_border_color_focus": ACCENT,
        "input_border_color_hover": QUIET,
        "input_placeholder_color": QUIET,
        "button_primary_background_fill": ACCENT,
        "button_primary_background_fill_hover": "#84cfe5",
        "button_primary_border_color": ACCENT,
        "button_primary_text_color": GROUND,
        "button_primary_text_color_hover": GROUND,
        "button_secondary_background_fill": CONTROL,
        "button_secondary_background_fill_hover": CONTROL_HOVER,
        "button_secondary_border_color": EDGE,
        "button_secondary_border_color_hover": QUIET,
        "button_secondary_text_color": TEXT,
        "button_secondary_text_color_hover": TEXT,
        "error_background_fill": "#2a1616",
        "error_border_color": "#b9524a",
        "error_text_color": "#ffb4ab",
        "error_icon_color": "#ffb4ab",
        "table_border_color": LINE,
        "table_text_color": TEXT,
        "table_even_background_fill": PANEL,
        "table_odd_background_fill": PANEL,
    }
    both = {
        name: value for colour, value in colours.items() for name, value in ((colour, value), (f"{colour}_dark", value))
    }
    plain = Base(
        primary_hue="cyan",
        neutral_hue="slate",
        radius_size="sm",
        text_size="sm",
        spacing_size="sm",
        font=SYSTEM_SANS,
        font_mono=SYSTEM_MONO,
    )
    return plain.set(
        **both,
        color_accent=ACCENT,
        block_shadow="none",
        input_shadow="none",
        input_shadow_focus="none",
        button_transition="none",
        button_primary_shadow="none",
        button_secondary_shadow="none",
    )
