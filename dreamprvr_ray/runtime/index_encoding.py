"""Encoding the videos of an index by several processes, on all nodes of a cluster, with Ray Data.

Each process opens the collection itself, so all nodes must see it under the same path (or in an object store). The
encoded blocks come back to the driver in their order, and it is the only one that writes: the index is the same as one
that a single process with as many threads makes, and an interrupted update is continued in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.index.collections import Collection
from dreamprvr_ray.index.encoding import encode_videos
from dreamprvr_ray.index.parts import PartContent
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.runtime.ray_data import data_context, one_line_errors
from dreamprvr_ray.runtime.resources import plan_group

BLOCK_BYTES = 128 * 2**20  # of 64 encoded videos, at most
TRIES = 3  # after a process or a node is lost


class ClusterEncoding:
    """Encodes blocks of videos by `workers` processes of the Ray to which this process is connected.

    Its calls are `index.building.EncodeBlocks`. They raise `UserError` if a video is damaged or the processes do not
    fit into the cluster, `Failure` if they are lost again and again.
    """

    def __init__(self, open_collection: Callable[[], Collection], workers: int) -> None:
        self._open_collection, self._workers = open_collection, workers

    def __call__(self, model: DreamPRVR | None, blocks: Sequence[Sequence[str]]) -> Iterator[PartContent]:
        group = plan_group(min(self._workers, len(blocks)))
        # Actors that may restart should have no references among their arguments: Ray would print a warning.
        reference = ray.cloudpickle.dumps(ray.put(None if model is None else model.cpu()))
        rows = [{"ids": list(ids)} for ids in blocks]
        with (
            data_context(2 * BLOCK_BYTES * group.workers, BLOCK_BYTES, keep_order=True),
            one_line_errors("the encoding"),
        ):
            encoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _BlockEncoder,
                batch_size=1,
                fn_constructor_args=(self._open_collection, reference, max(1, int(group.cpus_per_worker))),
                compute=ActorPoolStrategy(size=group.workers, max_tasks_in_flight_per_actor=2),
                num_cpus=group.cpus_per_worker,
                num_gpus=group.gpus_per_worker,
                max_restarts=-1,
                max_task_retries=TRIES,
            )
            for row in encoded.iter_rows():
                if mistakes := json.loads(row["mistakes"]):
                    raise UserError(*mistakes)
                yield row["content"]


class _BlockEncoder:
    """One process. It returns mistakes, such as a collection that this node does not see: Ray would try again."""

    def __init__(self, open_collection: Callable[[], Collection], model: bytes, threads: int) -> None:
        torch.set_num_threads(threads)
        self._open_collection = open_collection
        self._collection: Collection | None = None
        trained: DreamPRVR | None = ray.get(ray.cloudpickle.loads(model))
        self._model = None if trained is None else trained.to(best_device()).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        contents, mistakes = np.empty(len(batch["ids"]), object), []
        for number, ids in enumerate(batch["ids"]):
            try:
                contents[number] = self._encode([str(id) for id in ids])
                mistakes.append(json.dumps([]))
            except UserError as error:
                mistakes.append(json.dumps(error.mistakes))
        return {"content": contents, "mistakes": mistakes}

    def _encode(self, ids: Sequence[str]) -> PartContent:
        self._collection = self._collection or self._open_collection()
        return encode_videos([(id, self._collection.read(id)) for id in ids], self._model)
