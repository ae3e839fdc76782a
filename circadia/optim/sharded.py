"""Parameters that are spread over processes (DTensor, FSDP2): what needs a whole matrix, and who makes it.

States are sharded as their parameters are, slow memories too: nobody holds more than a share, and
`torch.distributed.checkpoint` saves and reshards them like weights. Element-wise steps run on the shards. For an
orthogonalisation each matrix has one owner, which is sent the shards, does the work once, and sends the parts back; the
owners are chosen so that all have about the same work.

Plain parameters (DDP) are whole everywhere, and every process does the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

AVAILABLE = dist.is_available()  # asked for every parameter of every step
if AVAILABLE:
    from torch.distributed.tensor import DTensor, Replicate, Shard

Index = tuple[slice, ...]


def spread(x: Tensor) -> bool:
    """Is this a tensor over several processes?"""
    return AVAILABLE and isinstance(x, DTensor)


def local(x: Tensor) -> Tensor:
    """What this process holds; it shares its memory."""
    return x.to_local() if AVAILABLE and isinstance(x, DTensor) else x


def whole(x: Tensor) -> Tensor:
    """All of it, on every process."""
    return x.full_tensor() if AVAILABLE and isinstance(x, DTensor) else x


def like(x: Tensor, p: Any) -> Tensor:
    """A whole tensor, the same on every process, laid out as p; what has another shape stays whole everywhere."""
    if not spread(p):
        return x
    made = DTensor.from_local(x, p.device_mesh, [Replicate()] * p.device_mesh.ndim, run_check=False)
    return made.redistribute(placements=p.placements) if x.shape == p.shape else made


def part_of(shard: Tensor, p: Any) -> Tensor:
    """A shard as the DTensor that it is a part of, laid out as p."""
    if not spread(p):
        return shard
    return DTensor.from_local(shard, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def gradient(p: Any) -> Tensor:
    """The gradient of p where p is, as this process holds it."""
    g: Any = p.grad
    if not spread(p):
        return g
    if g.placements != p.placements:
        g = g.redistribute(placements=p.placements)
    return local(g)


def owners(costs: Sequence[float], ranks: int) -> list[int]:
    """An owner for each piece of work: the largest first, each to the one who has least."""
    load, owner = [0.0] * ranks, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owner[i] = min(range(ranks), key=load.__getitem__)
        load[owner[i]] += costs[i]
    return owner


def on_matrices(
    function: Callable[[list[Tensor]], list[Tensor]], shards: list[Tensor], params: Sequence[Tensor]
) -> list[Tensor]:
    """``function`` of whole matrices, given and returned as shards that are laid out as ``params``."""
    if not any(spread(p) for p in params):
        return function(shards)
    return _on_spread(function, shards, params)


@torch.compiler.disable
def _on_spread(
    function: Callable[[list[Tensor]], list[Tensor]], shards: list[Tensor], params: Sequence[Any]
) -> list[Tensor]:
    exchanges: dict[tuple[Any, torch.dtype], list[int]] = {}
    given: list[Tensor] = []  # whole matrices that this process works on
    found: list[int] = []  # ... and which they are
    for i, p in enumerate(params):
        if _whole_here(p):
            given.append(shards[i])
        elif _exchangeable(p):
            exchanges.setdefault((p.device_mesh, shards[i].dtype), []).append(i)
            continue
        else:  # an unusual layout: everyone gathers it and does the same
            given.append(whole(part_of(shards[i], p)))
        found.append(i)
    moves = []
    for members in exchanges.values():
        move = Exchange([params[i] for i in members])
        gathered = move.gather([shards[i] for i in members])
        moves.append((move, members, len(given), len(given) + len(gathered)))
        given += gathered
    made = function(given) if given else []
    out = list(shards)
    for i, x in zip(found, made):
        out[i] = x if _whole_here(params[i]) else local(like(x, params[i]))
    for move, members, first, last in moves:
        for i, x in zip(members, move.scatter(made[first:last], [shards[i] for i in members])):
            out[i] = x
    return out


def rescale(steps: list[Tensor], params: Sequence[Any], rms: float = 0.2) -> None:
    """`circadia.optim.orthogonal.to_rms` in place, on shards: the mean is that of the whole matrix."""
    tiny = torch.finfo(steps[0].dtype).tiny
    if all(x.ndim == 2 and not spread(p) for x, p in zip(steps, params)):
        lengths = torch.stack(torch._foreach_norm(steps)).clamp_min_(tiny)
        wanted = lengths.new_tensor([rms * p.numel() ** 0.5 for p in params])
        torch._foreach_mul_(steps, list((wanted / lengths).unbind()))
        return
    squares = [x.square().sum((-2, -1)) for x in steps]
    together: dict[tuple[Any, ...], list[int]] = {}
    for i, p in enumerate(params):
        if spread(p):
            cut = tuple(dim for dim, placement in enumerate(p.placements) if _inside(placement, p))
            if cut:
                together.setdefault((p.device_mesh, cut, squares[i].dtype), []).append(i)
    for (mesh, cut, _), members in together.items():
        sums = torch.cat([squares[i].flatten() for i in members])
        for dim in cut:
            dist.all_reduce(sums, group=mesh.get_group(dim))
        for i, part in zip(members, sums.split([squares[i].numel() for i in members])):
            squares[i] = part.reshape(squares[i].shape)
    counts = [p.shape[-2] * p.shape[-1] for p in params]
    sizes = torch._foreach_sqrt(torch._foreach_div(squares, counts))
    torch._foreach_clamp_min_(sizes, tiny)
    factors = [rms / size for size in sizes]
    torch._foreach_mul_(steps, [f if f.ndim == 0 else f[..., None, None] for f in factors])


class Exchange:
    """Two all-to-alls among the processes of a mesh: shards to the owners of the matrices, and parts back."""

    def __init__(self, params: Sequence[Any]) -> None:
        self.params, mesh = params, params[0].device_mesh
        self.group = mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD
        assert self.group is not None
        ranks = mesh.mesh.flatten().tolist()
        # Place of each process in the mesh, by its rank in the group.
        place = {dist.get_group_rank(self.group, rank): (mesh.mesh == rank).nonzero()[0].tolist() for rank in ranks}
        self.places = [place[rank] for rank in range(len(ranks))]
        self.rank = dist.get_rank(self.group)
        costs = [float(p.numel() * min(p.shape[-2:])) for p in params]
        self.owner = owners(costs, len(ranks))

    def _index(self, p: Any, rank: int) -> Index:
        """What a process holds of a parameter: pieces as of `torch.chunk`."""
        index = [slice(0, n) for n in p.shape]
        for place, count, placement in zip(self.places[rank], p.device_mesh.mesh.shape, p.placements):
            if isinstance(placement, Shard):
                n = p.shape[placement.dim]
                size = -(-n // count)
                first = min(n, place * size)
                index[placement.dim] = slice(first, min(n, first + size))
        return tuple(index)

    def _sends(self, p: Any, rank: int, owner: int) -> bool:
        """Does the owner get its shard from this process? Of several copies it takes the one of its own row."""
        pairs = zip(self.places[rank], self.places[owner], p.placements)
        return all(mine == theirs or isinstance(placement, Shard) for mine, theirs, placement in pairs)

    def _swap(self, out: list[list[Tensor]], into: list[int], sample: Tensor) -> list[Tensor]:
        """Send each process its tensors; the flat ones that come, by sender."""
        send = torch.cat([x.flatten() for parts in out for x in parts] or [sample.new_empty(0)])
        got = send.new_empty(sum(into))
        dist.all_to_all_single(got, send, into, [sum(x.numel() for x in parts) for parts in out], group=self.group)
        return list(got.split(into))

    def gather(self, shards: list[Tensor]) -> list[Tensor]:
        """The matrices that this process owns, whole."""
        ranks = range(len(self.places))
        pairs = list(zip(shards, self.params, self.owner))
        out = [[x for x, p, owner in pairs if owner == rank and self._sends(p, self.rank, owner)] for rank in ranks]
        mine = [p for p, owner in zip(self.params, self.owner) if owner == self.rank]
        into = [sum(_size(self._index(p, rank)) for p in mine if self._sends(p, rank, self.rank)) for rank in ranks]
        made = [shards[0].new_empty(p.shape) for p in mine]
        for rank, flat in enumerate(self._swap(out, into, shards[0])):
            senders = [(p, x) for p, x in zip(mine, made) if self._sends(p, rank, self.rank)]
            for (x, index), part in _parts(flat, [(x, self._index(p, rank)) for p, x in senders]):
                x[index] = part
        return made

    def scatter(self, matrices: list[Tensor], shards: list[Tensor]) -> list[Tensor]:
        """Everybody's parts of the matrices that their owners have; ``shards`` say of which type."""
        ranks = range(len(self.places))
        mine = [p for p, owner in zip(self.params, self.owner) if owner == self.rank]
        out = [[x[self._index(p, rank)] for p, x in zip(mine, matrices)] for rank in ranks]
        held = [[i for i, owner in enumerate(self.owner) if owner == rank] for rank in ranks]
        into = [sum(shards[i].numel() for i in members) for members in held]
        made = list(shards)
        for members, flat in zip(held, self._swap(out, into, shards[0])):
            for (i, _), part in _parts(flat, [(i, self._index(self.params[i], self.rank)) for i in members]):
                made[i] = part
        return made


def _parts(flat: Tensor, wanted: list[tuple[Any, Index]]) -> Iterator[tuple[tuple[Any, Index], Tensor]]:
    sizes = [_size(index) for _, index in wanted]
    for one, part in zip(wanted, flat.split(sizes) if wanted else ()):
        yield one, part.reshape([at.stop - at.start for at in one[1]])


def _size(index: Index) -> int:
    size = 1
    for at in index:
        size *= at.stop - at.start
    return size


def _inside(placement: Any, p: Any) -> bool:
    """Does this placement cut matrices, not only their batch?"""
    return placement.is_shard() and placement.dim % p.ndim >= p.ndim - 2


def _whole_here(p: Any) -> bool:
    """Does this process hold whole matrices that are no copies of another's?"""
    return not spread(p) or (
        all(type(x) is Shard and not _inside(x, p) for x in p.placements if not x.is_replicate())
        and not all(x.is_replicate() for x in p.placements)
    )


def _exchangeable(p: Any) -> bool:
    """Does an all-to-all among all processes of the mesh know what each holds?"""
    cuts = [x for x in p.placements if not x.is_replicate()]
    usual = len(cuts) <= 1 and all(type(x) is Shard for x in cuts)
    return usual and (p.device_mesh.ndim == 1 or p.device_mesh.size() == dist.get_world_size())
