"""genai_config.json: what onnxruntime-genai needs to know to generate from an exported folder."""

from __future__ import annotations

from typing import Any

from exporters.onnx.trace import CacheShape


def genai_config(model: Any, layers: list[CacheShape], *, positions: bool, file: str) -> dict[str, Any]:
    """The file's content for a model with the optimum naming.

    `type` is "decoder": the generic loop, which fits every architecture here (its own "gpt2" expects other names). Past and
    present do not share a buffer: that needs a fixed-size cache, and fails on any graph with a growing one.
    onnxruntime-genai does not mask left padding for such a model; generate batches of equal length with it.
    """
    config = model.config
    # As the first layer caches, which a replaced attention may do in other sizes than the config says.
    heads, head_dim = layers[0][0]
    context = int(getattr(config, "max_position_embeddings", None) or 2048)
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if positions:
        inputs["position_ids"] = "position_ids"
    end = _first(model, "eos_token_id", list_allowed=True)
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            "context_length": context,
            "bos_token_id": _first(model, "bos_token_id"),
            "eos_token_id": end,
            "pad_token_id": _first(model, "pad_token_id", default=end[0] if isinstance(end, list) else end),
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": file,
                "hidden_size": config.hidden_size,
                "head_size": head_dim,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": heads,
                "num_hidden_layers": len(layers),
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "past_present_share_buffer": False,
        },
    }


def _first(model: Any, name: str, *, default: Any = 0, list_allowed: bool = False) -> Any:
    """A token id from the generation config, else from the config; a list only where the format takes one."""
    for holder in (model.generation_config, model.config):
        value = getattr(holder, name, None)
        if value is not None:
            return value if list_allowed or isinstance(value, int) else value[0]
    return default
