"""Reports as text."""

from __future__ import annotations

import base64
import gzip
import re

from plotly.offline import get_plotlyjs


def without_plotly(html: str) -> str:
    """Return a report without plotly.js, which must be in it, compressed, exactly if it has charts."""
    pattern = r'(<script id="plotly-source" type="text/plain">)([^<]*)(</script>)'
    found = [gzip.decompress(base64.b64decode(source)).decode() for _, source, _ in re.findall(pattern, html)]
    assert found == ([get_plotlyjs()] if "Plotly.newPlot(" in html else [])
    return re.sub(pattern, r"\1\3", html)
