"""Classifiers on what the frozen base makes of a text: class means, Gaussians, and Gaussians that ask the base.

A feature is the mean of the base's last hidden states over the question. Only sums are kept, so that the order of the
classes does not matter and nothing is forgotten.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from circadia.evals.arms.arm import Arm, Example, size
from circadia.evals.bases import Base, chosen

SHRINK = 0.01  # of the mean variance, added to the diagonal of the covariance


class ClassMeans(Arm):
    """NCM: the class whose mean is nearest in angle."""

    def __init__(self, base: Base, seed: int = 0) -> None:
        super().__init__(base, seed)
        self.counts: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def feature(self, text: str) -> Tensor:
        ids = torch.tensor([self.base.encode(text)[-self.base.window :]], device=self.base.model.device)
        return self.base.model.base_model(ids, use_cache=False).last_hidden_state[0].double().mean(0).cpu()

    def learn(self, examples: Sequence[Example]) -> None:
        for one in examples:
            x = self.feature(one.before)
            self.counts[one.after] = self.counts.get(one.after, 0) + 1
            self.sums[one.after] = self.sums.get(one.after, 0) + x
            self.see(one, x)

    def see(self, example: Example, x: Tensor) -> None:
        """What else is kept of an example."""

    def mean(self, label: str) -> Tensor:
        return self.sums[label] / self.counts[label]

    def classify(self, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
        """The best of the labels that have been learned; none before there are any."""
        known = [label for label in labels if label in self.sums]
        if not known:
            return [""] * len(texts)
        scores = self.scores(torch.stack([self.feature(text) for text in texts]), known)
        return [known[i] for i in scores.argmax(1).tolist()]

    def scores(self, x: Tensor, labels: Sequence[str]) -> Tensor:
        """Of every text and class, more is nearer. The mean of all texts, which is large, tells nothing: it is taken
        away.
        """
        middle = sum(self.sums.values()) / sum(self.counts.values())
        means = torch.stack([self.mean(label) - middle for label in labels])
        return torch.nn.functional.normalize(x - middle, dim=1) @ torch.nn.functional.normalize(means, dim=1).mT

    @property
    def bytes(self) -> int:
        return size(list(self.sums.values()))


class Gaussians(ClassMeans):
    """A Gaussian for each class, with one covariance for all: the smallest Mahalanobis distance."""

    def __init__(self, base: Base, seed: int = 0) -> None:
        super().__init__(base, seed)
        self.squares: Tensor | float = 0.0  # sum of x x^T

    def see(self, example: Example, x: Tensor) -> None:
        self.squares = self.squares + torch.outer(x, x)

    def scores(self, x: Tensor, labels: Sequence[str]) -> Tensor:
        # Scatter within the classes: sum x x^T - sum_c n_c mu_c mu_c^T.
        between = sum(n * torch.outer(self.mean(c), self.mean(c)) for c, n in self.counts.items())
        within = (self.squares - between) / sum(self.counts.values())
        assert isinstance(within, Tensor)
        size = within.diagonal().mean().clamp_min(1e-12)
        factor = torch.linalg.cholesky(within + SHRINK * size * torch.eye(len(within), dtype=within.dtype))
        white = torch.linalg.solve_triangular(factor, x.mT, upper=False).mT
        means = torch.stack([self.mean(label) for label in labels])
        return -torch.cdist(white, torch.linalg.solve_triangular(factor, means.mT, upper=False).mT)

    @property
    def bytes(self) -> int:
        return super().bytes + (size([self.squares]) if isinstance(self.squares, Tensor) else 0)


class InCA(Gaussians):
    """After Momeni et al. 2025: the Gaussians leave a few candidates, and the base chooses among them, with an example
    of each before the question. Theirs are of tags that a large model writes; these are of the base's own features.
    """

    CANDIDATES = 3

    def __init__(self, base: Base, seed: int = 0) -> None:
        super().__init__(base, seed)
        self.shown: dict[str, str] = {}  # the first example of each class

    def see(self, example: Example, x: Tensor) -> None:
        super().see(example, x)
        self.shown.setdefault(example.after, example.text)

    def classify(self, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
        known = [label for label in labels if label in self.sums]
        if len(known) < 2:
            return super().classify(texts, labels)
        scores = self.scores(torch.stack([self.feature(text) for text in texts]), known)
        best = scores.topk(min(self.CANDIDATES, len(known)), dim=1).indices
        found = []
        for text, row in zip(texts, best.tolist()):
            names = [known[i] for i in row]
            prompt = "".join(self.shown[name] for name in reversed(names)) + text
            found.append(names[chosen(self.base, self.base.model, [prompt], names)[0]])
        return found

    @property
    def bytes(self) -> int:
        return super().bytes + sum(len(text.encode()) for text in self.shown.values())
