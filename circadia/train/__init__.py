"""Training: one configuration, one loop, runs that survive a kill.

from circadia.train import load, train
result = train(load("configs/smoke.yaml", ["out=runs/mine"]))
"""

from circadia.train.config import TrainConfig, load
from circadia.train.loop import Diverged, Result, train

__all__ = ["Diverged", "Result", "TrainConfig", "load", "train"]
