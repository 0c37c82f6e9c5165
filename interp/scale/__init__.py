"""Past one machine and one process: heads over a corpus of any length (`corpus`), shards of one call merged into its
result (`merge`) and how far a directory is (`status`), workers of a Ray cluster that do the cells of a call (`Ray`), a
served engine whose heads are read (`vllm`, started with `vllm_arguments`), a model that others host (`hosted`),
and attention over a text that is cut over processes (`ring_attention`)."""

from __future__ import annotations

from interp.scale.context import ring_attention
from interp.scale.corpora.corpus import corpus
from interp.scale.corpora.measures import LossWithout
from interp.scale.hosted import hosted
from interp.scale.merge import merge
from interp.scale.serving.served import vllm
from interp.scale.serving.settings import vllm_arguments
from interp.scale.status import status
from interp.scale.workers.engine import Ray

__all__ = ["LossWithout", "Ray", "corpus", "hosted", "merge", "ring_attention", "status", "vllm", "vllm_arguments"]
