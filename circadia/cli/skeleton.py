"""Models without weights, built from their config on the meta device: tensors with a shape but no memory."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def build(source: str) -> "nn.Module":
    """The model of a folder, of a PEFT adapter folder, or of a Hugging Face id."""
    from circadia.models.bundled import located

    source = located(source)
    folder = Path(source).expanduser()
    if (folder / "adapter_config.json").is_file():
        return _adapted(folder)
    if (folder / "retrofit.json").is_file():
        from circadia.models.retrofit import files

        return files.skeleton(folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{source}: the folder has neither config.json nor adapter_config.json; pass a model's folder")
    if not folder.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ValueError(f"{source}: no such folder")
    if folder.is_file():
        raise ValueError(f"{source} is a file; pass the folder that holds config.json")
    return _plain(str(folder) if folder.is_dir() else source)


def _plain(source: str) -> "nn.Module":
    import torch
    from huggingface_hub import HfApi, try_to_load_from_cache
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    local = Path(source).is_dir()
    try:
        if not local and not isinstance(try_to_load_from_cache(source, "config.json"), str):
            # One question to the Hub first: downloads retry for half a minute when there is no network.
            HfApi().model_info(source, timeout=10)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # offline, unknown, gated, broken JSON, unknown type: each has its own class
        fix = "check config.json there" if local else "check the name and the network"
        raise ValueError(f"{source}: its config cannot be read; {fix} ({_first_line(error)})") from error
    with torch.device("meta"):
        for auto in (AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModel):
            if type(config) in auto._model_mapping:
                return auto.from_config(config, dtype=config.dtype or torch.float32)
    raise ValueError(f"{source}: transformers knows no model for its config, {type(config).__name__}")


def _adapted(folder: Path) -> "nn.Module":
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"{folder} is a PEFT adapter; run: pip install 'circadia[train]'") from error
    import torch

    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # a broken or foreign adapter config
        raise ValueError(f"{folder}: adapter_config.json cannot be read ({_first_line(error)})") from error
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"{folder}: adapter_config.json names no base_model_name_or_path; add the base model there")
    try:
        model = build(base)
    except ValueError as error:
        raise ValueError(f"{folder} is an adapter of a base model that is not at hand: {error}") from error
    config.inference_mode = False  # show the adapter as what it is for: the part that is trained
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft still uses a name that transformers renames
        return peft.get_peft_model(model, config)


def optimizers(name: str, module: "nn.Module") -> "list[Optimizer] | None":
    """Optimizers with torch's default settings; Muon comes with the usual AdamW beside it."""
    import torch

    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if name == "none" or not trainable:
        return None
    if name == "sgd":
        return [torch.optim.SGD(trainable.values(), lr=1e-2, momentum=0.9)]
    if name == "adamw":
        return [torch.optim.AdamW(trainable.values())]
    # Muon is for the matrices between embeddings and head; those two and all vectors are left to AdamW.
    ends = [part.weight for part in module.modules() if isinstance(part, torch.nn.Embedding)]
    head = getattr(module, "get_output_embeddings", lambda: None)()
    outside = {id(parameter) for parameter in [*ends, *([head.weight] if head is not None else [])]}
    matrices = [p for p in trainable.values() if p.ndim == 2 and id(p) not in outside]
    inside = {id(parameter) for parameter in matrices}
    rest = [p for p in trainable.values() if id(p) not in inside]
    return [*([torch.optim.Muon(matrices)] if matrices else []), *([torch.optim.AdamW(rest)] if rest else [])]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
