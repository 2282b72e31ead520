"""The transformer: token ids to hidden states and logits, registered with transformers' auto classes on import."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cm3.model.configuration import CM3Config
from cm3.model.embedding_init import project_codebook, set_image_embeddings
from cm3.model.modeling import CM3ForCausalLM, CM3Model
from cm3.model.presets import PRESETS, create_model, preset

AutoConfig.register(CM3Config.model_type, CM3Config, exist_ok=True)
AutoModel.register(CM3Config, CM3Model, exist_ok=True)
AutoModelForCausalLM.register(CM3Config, CM3ForCausalLM, exist_ok=True)

__all__ = [
    "PRESETS",
    "CM3Config",
    "CM3ForCausalLM",
    "CM3Model",
    "create_model",
    "preset",
    "project_codebook",
    "set_image_embeddings",
]
