"""Blocks, the stack, and the language model, by the conventions of transformers 5."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from circadia.models.cache import HopeCache, State
from circadia.models.config import HopeConfig
from circadia.models.context import Context
from circadia.models.mixers.attention import Attention
from circadia.models.mixers.conv import ShortConv
from circadia.models.mixers.memory import MemoryMixer
from circadia.models.mixers.table import MIXERS


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: HopeConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)


class HopeBlock(GradientCheckpointingLayer):
    """x + mixer(norm x), then x + mlp(norm x)."""

    def __init__(self, config: HopeConfig, index: int) -> None:
        super().__init__()
        row = MIXERS[config.layer_mixers[index]]
        self.mixer: nn.Module
        if row.attention:
            self.mixer = Attention(config, config.sliding_window if row.windowed else None)
        else:
            self.mixer = MemoryMixer(config, row)
        self.mlp = SwiGLU(config)
        self.norm_mixer = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_mlp = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        y, state = self.mixer(self.norm_mixer(x), state, ctx)
        x = x + y
        return x + self.mlp(self.norm_mlp(x)), state


class HopePreTrainedModel(PreTrainedModel):
    """Initialisation, and what transformers may do with these models."""

    config_class = HopeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HopeBlock"]  # noqa: RUF012
    _is_stateful = True  # a memory cannot be cropped, so no assisted decoding
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, (MemoryMixer, ShortConv)):
            module.init_weights()
        elif isinstance(module, Attention):
            init.copy_(module.inverse, module.frequencies())
        if isinstance(module, (MemoryMixer, Attention, SwiGLU)):
            # Each block adds to the residual stream twice: keep its variance from growing with the depth.
            init.normal_(module.out.weight, std=std / (2 * self.config.num_hidden_layers) ** 0.5)


class HopeModel(HopePreTrainedModel):
    """Embeddings, blocks and a last norm."""

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(HopeBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: HopeCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        reset: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """``reset`` [B, T] marks the first tokens of packed documents; ``attention_mask`` [B, past + T] real tokens."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = None
        if attention_mask is not None:
            if attention_mask.ndim != 2:
                raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}: give [batch, tokens]")
            if attention_mask.shape[1] < x.shape[1]:
                raise ValueError(f"attention_mask covers {attention_mask.shape[1]} tokens, the input has {x.shape[1]}")
            mask = attention_mask[:, -x.shape[1] :].bool()
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = past_key_values
        if cache is not None and not isinstance(cache, HopeCache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}: pass circadia.models.HopeCache(config.num_hidden_layers)"
            )
        if cache is None and use_cache:
            cache = HopeCache(self.config.num_hidden_layers)
        ctx = Context.of(mask, None if reset is None else reset.bool())
        for i, block in enumerate(self.layers):
            x, state = block(x, cache.layers[i].state if cache is not None else {}, ctx)
            if cache is not None and use_cache:
                cache.layers[i].write(state, x.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=cache if use_cache else None)


class HopeForCausalLM(HopePreTrainedModel, GenerationMixin):
    """The language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.model = HopeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def compile_memories(self, compiled: bool = True) -> "HopeForCausalLM":
        """Run the deep and self-modifying memories through ``torch.compile``, tile by tile; see ``Rule.compiled``."""
        for module in self.modules():
            if isinstance(module, MemoryMixer) and module.rule.family in ("deep", "self-modifying"):
                module.rule = replace(module.rule, compiled=compiled)
        return self

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        """Generation starts from our own cache instead of one of keys and values."""
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = HopeCache(self.config.num_hidden_layers)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: HopeCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the next-token loss if labels are given."""
        reset = kwargs.pop("reset", None)
        out = self.model(input_ids, attention_mask, past_key_values, inputs_embeds, use_cache, reset)
        keep = logits_to_keep
        kept = out.last_hidden_state[:, keep] if isinstance(keep, Tensor) else out.last_hidden_state[:, -keep:]
        logits = self.lm_head(kept)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)
