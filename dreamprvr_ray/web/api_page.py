"""A page that describes the API, made from its OpenAPI description: plain HTML, without scripts or other files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from dreamprvr_ray.web.page import Page, with_policy

_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --panel: #fff; --ink: #1d1f21; --soft: #5b6066; --line: #dcdcd7;
  --accent: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --page: #141517; --panel: #1d1f22; --ink: #ececea; --soft: #a2a7ad;
  --line: #32353a; --accent: #ff8a4c; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 24px 16px 60px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  margin: 14px 0; }
h2 { font: 600 17px/1.4 ui-monospace, Menlo, monospace; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 b, a { color: var(--accent); } p { margin: 6px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td { border-top: 1px solid var(--line); padding: 5px 10px 5px 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { font-family: ui-monospace, Menlo, monospace; white-space: nowrap; } .soft { color: var(--soft); }
"""


def api_page(description: Mapping[str, Any]) -> Page:
    """Return the page for an OpenAPI description."""
    sections = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            rows = [*_parameters(operation), *_body(operation, description)]
            cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(about)}</td></tr>" for name, about in rows)
            text = "".join(f"<p>{escape(part)}</p>" for part in operation.get("description", "").split("\n\n"))
            table = f"<table>{cells}</table>" if cells else ""
            sections.append(f"<section><h2><b>{method.upper()}</b> {escape(path)}</h2>{text}{table}</section>")
    info = description["info"]
    return with_policy(
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>API of {escape(info['title'])}</title><style>{_STYLE}</style></head>\n<body><main>"
        f"<h1>API of {escape(info['title'])} {escape(info['version'])}</h1>"
        '<p class="soft">For programs: <a href="/openapi.json">openapi.json</a>. Errors are'
        ' {"detail": "what is wrong"} with a status of 4xx; 503 means that the request may be repeated.</p>'
        f"{''.join(sections)}</main></body>\n</html>\n"
    )


def _parameters(operation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for parameter in operation.get("parameters", ()):
        needed = "required" if parameter.get("required") else f"default {parameter['schema'].get('default')}"
        about = parameter.get("description") or parameter["schema"].get("description", "")
        yield parameter["name"], _described(parameter["schema"], about, needed)


def _body(operation: Mapping[str, Any], description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        schema = description.get("components", {}).get("schemas", {}).get(name, {})
        for key, value in schema.get("properties", {}).items():
            needed = "required" if key in schema.get("required", ()) else f"default {value.get('default')}"
            yield f"{key} (JSON)", _described(value, value.get("description", ""), needed)


def _described(schema: Mapping[str, Any], about: str, needed: str) -> str:
    return "; ".join(part for part in (f"{schema.get('type', '')}, {needed}".strip(", "), about) if part)
