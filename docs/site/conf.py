"""Settings of Sphinx. `bin/docs.sh` gives them the directory that `stage.py` laid out."""

from exesys import __version__

project = "ExeSys"
release = __version__
extensions = ["myst_parser"]
exclude_patterns: list[str] = []
nitpicky = True
smartquotes = False  # ',' in a table is what to type
highlight_language = "text"
myst_heading_anchors = 4

html_theme = "furo"
html_title = "ExeSys"
html_static_path = ["exesys.css"]
html_css_files = ["exesys.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_use_index = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e4f", "color-brand-content": "#0b6e4f"},
    "dark_css_variables": {"color-brand-primary": "#4cc39a", "color-brand-content": "#4cc39a"},
}
