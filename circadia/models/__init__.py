"""Models as Hugging Face citizens. Importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from circadia.models.cache import HopeCache
from circadia.models.config import HopeConfig
from circadia.models.model import HopeForCausalLM, HopeModel
from circadia.models.presets import preset

AutoConfig.register(HopeConfig.model_type, HopeConfig)
AutoModel.register(HopeConfig, HopeModel)
AutoModelForCausalLM.register(HopeConfig, HopeForCausalLM)

__all__ = ["HopeCache", "HopeConfig", "HopeForCausalLM", "HopeModel", "preset"]
