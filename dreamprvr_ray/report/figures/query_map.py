"""Query embeddings in two dimensions by t-SNE, by video (figure 4 of the paper).

Shapes: n queries, D size of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.report.figures.embedders import Embedder

VIDEOS = 10  # at most this many are shown
QUERIES_NEEDED, VIDEOS_NEEDED = 3, 2  # queries of a video, and such videos: fewer show no groups
LARGEST_PERPLEXITY = 30.0  # scikit-learn's default, which needs more points than a few videos have queries


@dataclass(frozen=True, eq=False)
class QueryMap:
    """Queries of a few videos as points. The axes of t-SNE have no meaning, only which points are close.

    Attributes:
        label: Of the embedder.
        points: (n, 2) float32.
        silhouette: Mean silhouette of the embeddings themselves, by cosine distance and with a video's queries as a
            cluster: 1 if each query is close to those of its own video only, 0 if it is as close to those of another.
    """

    label: str
    points: np.ndarray
    silhouette: float


def busiest_videos(split: Split) -> np.ndarray:
    """Return the numbers of the videos with the most queries, at most `VIDEOS`, of equal ones the first.

    Only videos with at least `QUERIES_NEEDED` queries count; it is empty if there are fewer than `VIDEOS_NEEDED`.
    """
    counts = np.diff(split.first_query)
    order = np.argsort(-counts, kind="stable")[:VIDEOS]
    enough: np.ndarray = order[counts[order] >= QUERIES_NEEDED]
    return enough if len(enough) >= VIDEOS_NEEDED else enough[:0]


def query_map(embedder: Embedder, split: Split, queries: np.ndarray, seed: int) -> QueryMap:
    """Return a map of these queries (n,), of at least two videos. It depends on the embeddings and `seed` only."""
    embeddings = embedder.queries(split, queries).numpy().astype(np.float64)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    perplexity = min(LARGEST_PERPLEXITY, (len(queries) - 1) / 3)
    tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, method="exact", random_state=seed)
    silhouette = silhouette_score(embeddings, split.owner[queries], metric="cosine")
    return QueryMap(embedder.label, tsne.fit_transform(embeddings), float(silhouette))
