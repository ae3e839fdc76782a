"""`train.compile: true`, with the compiler itself."""

import pytest
import torch

from circadia.train import train
from circadia.train.log import read
from tests.train.conftest import MODEL


@pytest.mark.skipif(" " in torch.__file__, reason="torch's compiler cannot link from a path with spaces")
@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
def test_a_compiled_run_equals_the_plain_one(config, tmp_path):
    model = {"preset": "gated-deltanet/tiny", "config": {**MODEL, "num_hidden_layers": 1, "mixers": ["attention"]}}
    curves = []
    for compiled in ("false", "true"):
        given = ("train.tokens=384", "data.reset=false", f"train.compile={compiled}", f"out={tmp_path / compiled}")
        lines = read(train(config(*given, model=model)).folder)
        curves.append([line["loss"] for line in lines if line["kind"] == "step"])
    assert len(curves[0]) == 3 and curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_a_path_with_spaces_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__file__", "/a path/torch/__init__.py")
    with pytest.raises(ValueError, match=r"/a path/torch.*train\.compile=false"):
        train(
            config(
                "train.compile=true",
                f"out={tmp_path / 'run'}",
                model={"preset": "gated-deltanet/tiny", "config": MODEL},
            )
        )
