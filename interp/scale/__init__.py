"""Past one machine and one process: heads over a corpus of any length (`corpus`), shards of one call merged into its
result and how far a directory is, and a served engine whose heads are read (`vllm`, started with `vllm_arguments`)."""

from __future__ import annotations

from interp.scale.corpora.corpus import corpus
from interp.scale.corpora.measures import LossWithout
from interp.scale.serving.served import vllm
from interp.scale.serving.settings import vllm_arguments

__all__ = ["LossWithout", "corpus", "vllm", "vllm_arguments"]
