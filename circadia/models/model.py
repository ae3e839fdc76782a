"""Blocks, the stack, and the language model, by the conventions of transformers 5."""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from circadia.models import memory_file, online, room
from circadia.models.cache import HopeCache, State
from circadia.models.config import HopeConfig
from circadia.models.context import Context
from circadia.models.levels import Levels
from circadia.models.mixers.memory import MemoryMixer
from circadia.models.mixers.table import MIXERS


class HopeBlock(GradientCheckpointingLayer):
    """x + mixer(norm x), then x + MLP_l(norm x) for every level."""

    def __init__(self, config: HopeConfig, index: int) -> None:
        super().__init__()
        self.mixer = MIXERS[config.layer_mixers[index]].build(config)
        self.levels = Levels(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        y, mixed = self.mixer(self.norm(x), state, ctx)
        x, learned = self.levels(x + y, state, ctx)
        return x, {**mixed, **learned}


class HopePreTrainedModel(PreTrainedModel):
    """Initialisation, and what transformers may do with these models."""

    config_class = HopeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HopeBlock"]  # noqa: RUF012
    _is_stateful = True  # a memory cannot be cropped, so no assisted decoding
    _supports_sdpa = True

    def __init__(self, config: HopeConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        room.check(config, head=isinstance(self, GenerationMixin))

    def save_memory(self, path: str | os.PathLike, cache: HopeCache) -> None:
        """Write what was read into ``cache`` to one safetensors file, apart from the base weights."""
        memory_file.save(self, path, cache)

    def load_memory(self, path: str | os.PathLike, *, any_base: bool = False) -> HopeCache:
        """The cache that was saved: pass it on as ``past_key_values``, and reading goes on bit for bit.

        Generation, as with every Hugging Face cache, takes the whole text, or the new tokens alone with an
        attention_mask over the ``cache.get_seq_length()`` tokens read before and the new ones.
        A memory of another architecture is refused, and one that other base weights have written unless ``any_base``.
        """
        return memory_file.load(self, path, any_base)

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
        elif callable(own := getattr(module, "init_weights", None)) and not isinstance(module, PreTrainedModel):
            own()
        if isinstance(out := getattr(module, "out", None), nn.Linear):
            # Mixer and levels add to the residual stream: keep its variance from growing with the depth.
            adds = self.config.num_hidden_layers * (1 + len(self.config.periods))
            init.normal_(out.weight, std=std / adds**0.5)

    def stream_periods(self) -> dict[str, int]:
        """Patterns of parameter names -> tokens between two steps, for ``circadia.optim.periods``: the stream regime.

        A level with a period steps once a period, everything else at every step.
        """
        periods = self.config.periods if self.config.cms_regime == "stream" else []
        return {**{f"*.levels.levels.{i}.*": p for i, p in enumerate(periods) if p}, "*": 1}


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
        learner: "HopeForCausalLM | None" = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """``reset`` [B, T] marks the first tokens of packed documents; ``attention_mask`` [B, past + T] real tokens.

        Packed documents may also come as Hugging Face's collators hand them over: ``position_ids`` [B, T] that start
        anew, and no attention_mask. Positions decide nothing else: every memory counts its own tokens.
        ``learner``: the language model around this one, if its own loss teaches the levels (``models.online``).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if not x.shape[1]:
            raise ValueError("the input holds no token: give at least one")
        if reset is not None and reset.shape != x.shape[:2]:
            raise ValueError(f"reset is {tuple(reset.shape)}: it must be {tuple(x.shape[:2])} (batch, tokens)")
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
        if cache is not None and len(cache.layers) != len(self.layers):
            raise ValueError(
                f"past_key_values has {len(cache.layers)} layers, this model {len(self.layers)}: pass "
                "circadia.models.HopeCache(config.num_hidden_layers)"
            )
        if cache is None and use_cache:
            cache = HopeCache(self.config.num_hidden_layers)
        if reset is None and attention_mask is None and (cache is None or cache.get_seq_length() == 0):
            reset = _borders(kwargs.get("position_ids"), x.shape[0])
        ctx = Context.of(mask, None if reset is None else reset.bool(), keep=bool(use_cache))
        states = [{} for _ in self.layers] if cache is None else cache.states
        if learner is None:
            hidden, states = self.run(x, states, ctx)
        else:
            if input_ids is None or not ctx.plain or (self.gradient_checkpointing and self.training):
                raise ValueError(
                    "cms_signal='loss' learns from whole rows of input_ids: no padding, no packed documents, no "
                    "inputs_embeds and no gradient checkpointing; batch rows of one length, or use cms_signal='local'"
                )
            hidden, states = online.read(learner, input_ids, states, ctx.keep)
        if cache is not None and use_cache:
            for layer, state in zip(cache.layers, states):
                layer.write(state, x.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache if use_cache else None)

    def run(self, x: Tensor, states: list[State], ctx: Context) -> tuple[Tensor, list[State]]:
        """Embeddings through all blocks and the last norm, states in and out."""
        new = []
        for block, state in zip(self.layers, states):
            x, state = block(x, state, ctx)
            new.append(state)
        return self.norm(x), new


def _borders(position_ids: Tensor | None, batch: int) -> Tensor | None:
    """First tokens of documents after the first one in a row; None if there is one document."""
    if position_ids is None:
        return None
    starts = torch.zeros_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts.expand(batch, -1) if bool(starts.any()) else None


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
        cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        if generation_config.use_cache and cache is None:
            model_kwargs["past_key_values"] = HopeCache(self.config.num_hidden_layers)
        # Without a new token transformers would cut the text from the wrong end, and a memory would read it twice.
        # A mask without padding has been dropped before, its length kept.
        covered = getattr(generation_config, "_mask_length", None) if mask is None else mask.shape[1]
        if cache is not None and covered is not None and 0 < covered <= cache.get_seq_length():
            raise ValueError(
                f"input_ids and attention_mask cover {covered} tokens, but past_key_values has read "
                f"{cache.get_seq_length()}: pass the whole text with something new at its end, or the new tokens with "
                "an attention_mask over the tokens read before and the new ones"
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: HopeCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        reset: Tensor | None = None,  # by name: the Trainer of transformers drops what it does not find here
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the next-token loss if labels are given."""
        position_ids = kwargs.pop("position_ids", None)
        learner = self if self.config.learns_from_loss else None
        out = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            reset,
            learner,
            position_ids=position_ids,
        )
        keep = logits_to_keep
        kept = out.last_hidden_state[:, keep] if isinstance(keep, Tensor) else out.last_hidden_state[:, -keep:]
        logits = self.lm_head(kept)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)
