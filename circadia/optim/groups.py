"""Which parameters are which: an optimizer sees shapes only, and cannot tell a head from a hidden matrix."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

HEADS = ("lm_head", "head", "heads", "classifier", "score", "unembed", "embed_out", "output_projection")
EMBEDDINGS = ("embed", "wte", "wpe", "cls_token", "pos_emb")
CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@dataclass(frozen=True)
class Groups:
    """The trainable parameters of a model by name, split by what may be done to them."""

    matrices: dict[str, nn.Parameter]  # hidden matrices: what Muon, M3 and DGD are for
    embeddings: dict[str, nn.Parameter]  # a row per token or position, also where the head is tied to it
    head: dict[str, nn.Parameter]
    vectors: dict[str, nn.Parameter]  # norms, biases, gains, and convolution kernels
    memories: dict[str, nn.Parameter]  # learned starts of memories, and what else has three axes or more

    def items(self) -> Iterator[tuple[str, dict[str, nn.Parameter]]]:
        """Name and parameters of each group."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)

    def __str__(self) -> str:
        rows = [("group", "tensors", "parameters", "such as")]
        for name, group in self.items():
            size = sum(p.numel() for p in group.values())
            rows.append((name, f"{len(group)}", f"{size:,}", ", ".join(list(group)[:2]) or "-"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
        if not self.head:
            lines.append("no head was found (tied, or none?): if there is one, groups(model, {'its.name*': 'head'})")
        return "\n".join(lines)


def groups(model: nn.Module, overrides: Mapping[str, str] | None = None) -> Groups:
    """Split the trainable parameters of a model; print the result to see it.

    A tied head counts as embedding. The head is what `get_output_embeddings()` names (Hugging Face), a module with one
    of the usual names, or the only matrix with as many rows as the largest embedding. Elsewhere nobody can know it, so
    name it: ``overrides`` maps patterns of parameter names to groups, as in ``groups(model, {"4.*": "head",
    "*.experts.*": "matrices"})``; the first pattern that fits counts.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}; pass the model itself")
    names = tuple(field.name for field in fields(Groups))
    overrides = dict(overrides or {})
    for pattern, group in overrides.items():
        if group not in names:
            raise ValueError(f"overrides[{pattern!r}]={group!r} is unknown: use one of {', '.join(map(repr, names))}")
    owners: dict[str, tuple[str, nn.Module]] = {}
    tables: set[int] = set()
    for path, part in model.named_modules():
        own = dict(part.named_parameters(recurse=False, prefix=path))
        owners |= dict.fromkeys(own, (path, part))
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
            tables |= {id(p) for p in own.values()}
    heads, starts = _heads(model), _starts(model)
    split: dict[str, dict[str, nn.Parameter]] = {name: {} for name in names}
    used = set()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        chosen = next((pattern for pattern in overrides if fnmatchcase(name, pattern)), None)
        if chosen is not None:
            used.add(chosen)
            group = overrides[chosen]
            if group == "matrices" and p.ndim < 2:
                group = "vectors"  # a pattern for a whole module means its matrices; its biases are no matrices
        else:
            path, part = owners[name]
            group = _kind(name, p, part, id(p) in tables, id(p) in starts, id(p) in heads or _named_head(path))
        split[group][name] = p
    if unused := sorted(set(overrides) - used):
        raise ValueError(f"overrides has patterns {unused} that fit no trainable parameter: see named_parameters()")
    return Groups(**split)


def _kind(name: str, p: Tensor, part: nn.Module, table: bool, start: bool, head: bool) -> str:
    if start:
        return "memories"
    if table:
        return "embeddings"
    if p.ndim < 2 or isinstance(part, CONVOLUTIONS):
        return "vectors"
    if any(word in name.rsplit(".", 1)[-1] or word in type(part).__name__.lower() for word in EMBEDDINGS):
        return "embeddings"
    if head:
        return "head"
    return "matrices" if p.ndim == 2 else "memories"


def _named_head(path: str) -> bool:
    return bool(set(path.split(".")) & set(HEADS))


def _heads(model: nn.Module) -> set[int]:
    """Ids of the parameters of the output layer, where the model says or shows which one it is."""
    getter: Any = getattr(model, "get_output_embeddings", None)
    layer = getter() if callable(getter) else None
    if isinstance(layer, nn.Module):
        return {id(p) for p in layer.parameters()}
    rows = max((part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)), default=0)
    fits = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == rows]
    return {id(p) for p in fits[0].parameters()} if len(fits) == 1 else set()


def _starts(model: nn.Module) -> set[int]:
    """Ids of the learned starts that modules name in `levels_entry()` (see `circadia.levels`)."""
    found: set[int] = set()
    for part in model.modules():
        describe: Any = getattr(part, "levels_entry", None)
        if not callable(describe):
            continue
        entries = describe()
        own = dict(part.named_parameters(remove_duplicate=False))
        for entry in [entries] if isinstance(entries, Mapping) else entries:
            found |= {id(own[name]) for name in entry.get("starts_from", ()) if name in own}
    return found
