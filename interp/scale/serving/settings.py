"""How a vLLM engine has to be started so that its heads can be read, and what is said of one that was not."""

from __future__ import annotations

from typing import Any

from interp.hooks.errors import ModelError

EXTENSION = "interp.scale.serving.worker.HeadsInWorker"


def vllm_arguments() -> dict[str, Any]:
    """What `vllm.LLM(model, **interp.scale.vllm_arguments())` needs for its heads to be read.

    The transformers backend calls the attention interface that interp reads; eager execution, since compiled graphs
    call nothing; no prefix cache, whose tokens never run; and no step that is run ahead and thrown away.
    """
    return {
        "model_impl": "transformers", "enforce_eager": True, "enable_prefix_caching": False,
        "async_scheduling": False, "worker_extension_cls": EXTENSION,
    }  # fmt: skip


def refuse_scores(config: Any) -> None:
    """Raise where an engine gives other numbers than log-probabilities."""
    mode = str(getattr(config.model_config, "logprobs_mode", "raw_logprobs"))
    if not mode.endswith("_logprobs"):
        raise ModelError(
            f"this engine's logprobs_mode is {mode!r}, so it gives no log-probabilities: start it with"
            " logprobs_mode='raw_logprobs'."
        )


def refuse(config: Any) -> None:
    """Raise where an engine's configuration (`llm.llm_engine.vllm_config`) rules out reading its heads."""
    wrong = [f"{said} ({remedy})" for said, remedy in _wrong(config)]
    if wrong:
        raise ModelError(
            "this engine's heads cannot be read: "
            + "; ".join(wrong)
            + ". Start it as vllm.LLM(model, ..., **interp.scale.vllm_arguments())."
        )


def _wrong(config: Any) -> list[tuple[str, str]]:
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    given = [
        (model.enforce_eager is not True, "it is compiled", "enforce_eager=True"),
        (bool(cache.enable_prefix_caching), "it caches prefixes, whose tokens never run",
         "enable_prefix_caching=False"),
        (str(model.model_impl) != "transformers", f"its model_impl is {str(model.model_impl)!r}",
         "model_impl='transformers'"),
        (parallel.worker_extension_cls != EXTENSION, "its workers know nothing of interp",
         f"worker_extension_cls={EXTENSION!r}"),
        (bool(config.scheduler_config.async_scheduling), "it runs steps in advance and discards some",
         "async_scheduling=False"),
        (config.speculative_config is not None, "it drafts tokens that are discarded", "no speculative_config"),
        (getattr(config, "kv_transfer_config", None) is not None, "it takes keys from elsewhere",
         "no kv_transfer_config"),
        (parallel.data_parallel_size > 1, "it is several engines", "data_parallel_size=1, and one shard a process"),
        *((getattr(parallel, name, 1) > 1, "the tokens of one text are on several devices", f"{name}=1")
          for name in ("decode_context_parallel_size", "prefill_context_parallel_size")),
        (bool(getattr(config, "use_v2_model_runner", False)), "it has the second model runner, which was not tried",
         "VLLM_USE_V2_MODEL_RUNNER=0 in the environment"),
        (bool(getattr(parallel, "use_ubatching", False)), "it cuts a batch into micro-batches", "enable_dbo=False"),
    ]  # fmt: skip
    return [(said, remedy) for bad, said, remedy in given if bad]
