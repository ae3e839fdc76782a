"""A live state as a file: bit-equal after a restart, refused where it does not belong, whole after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from circadia.models import HopeCache, HopeConfig, HopeForCausalLM, HopeModel
from circadia.models.mixers.table import MIXERS

ROOT = Path(__file__).parents[2]
HYBRID = ["gated_deltanet", "sliding_attention", "self_modifying", "attention"]
every_kind = pytest.mark.parametrize("mixers", [*([name] for name in MIXERS), HYBRID], ids="-".join)


def config(**settings) -> HopeConfig:
    given = dict(mixers=HYBRID, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, vocab_size=64)
    given |= dict(chunk=8, sliding_window=12)
    return HopeConfig(**(given | settings))


def make(cls=HopeForCausalLM, seed: int = 0, **settings):
    torch.manual_seed(seed)
    return cls(config(**settings)).eval()


def text(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(seed))


def read(model, tokens: torch.Tensor, cache: HopeCache | None = None, **more) -> tuple[torch.Tensor, HopeCache]:
    cache = cache or HopeCache(model.config.num_hidden_layers)
    with torch.no_grad():
        return model(tokens, past_key_values=cache, use_cache=True, **more)[0], cache


@pytest.fixture
def saved(tmp_path: Path) -> tuple[HopeForCausalLM, Path]:
    model = make()
    model.save_memory(tmp_path / "memory.safetensors", read(model, text(2, 21))[1])
    return model, tmp_path / "memory.safetensors"


@every_kind
@pytest.mark.parametrize("cls", [HopeForCausalLM, HopeModel])
def test_reading_goes_on_bit_for_bit(cls, mixers: list[str], tmp_path: Path) -> None:
    """In a model of the same weights that was loaded anew, over padding, for every entry of every layer."""
    model, path = make(cls, mixers=mixers), tmp_path / "memory.safetensors"
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[1, :5] = 0
    _, cache = read(model, text(2, 21), attention_mask=mask)
    model.save_memory(path, cache)
    model.save_pretrained(tmp_path / "base")
    again = cls.from_pretrained(tmp_path / "base").eval()
    loaded = again.load_memory(path)
    assert loaded.get_seq_length() == 21
    for old, new in zip(cache.states, loaded.states):
        assert list(old) == list(new) and all(torch.equal(old[n], new[n]) for n in old)
        assert {n: x.dtype for n, x in old.items()} == {n: x.dtype for n, x in new.items()}
    for size in (1, 14):
        assert torch.equal(read(model, text(2, size), cache)[0], read(again, text(2, size), loaded)[0])


def test_generation_goes_on_in_a_new_process(tmp_path: Path) -> None:
    """Both ways to hand over the next turn: the whole text, and the new tokens under a mask over everything."""
    make().save_pretrained(tmp_path)
    # Both processes load the weights from the file: the last bit of a product depends on where in memory they lie.
    model, x = HopeForCausalLM.from_pretrained(tmp_path).eval(), text(1, 30)
    model.save_memory(tmp_path / "memory.st", read(model, x[:, :21])[1])
    code = (
        "import sys, torch; from circadia.models import HopeForCausalLM\n"
        "torch.set_num_threads(1); torch.use_deterministic_algorithms(True)\n"
        "model = HopeForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "x = torch.tensor([eval(sys.argv[2])])\n"
        "for ids in (x, x[:, 21:]):\n"
        "    cache = model.load_memory(sys.argv[1] + '/memory.st')\n"
        "    out = model.generate(ids, attention_mask=torch.ones_like(x), past_key_values=cache, max_new_tokens=8,\n"
        "                         do_sample=False, output_logits=True, return_dict_in_generate=True)\n"
        "    print([out.sequences[0, -8:].tolist(), torch.cat(out.logits).sum(0).tolist()])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(x[0].tolist())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cache = read(model, x[:, :21])[1]
    here = model.generate(
        x, past_key_values=cache, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    wanted = [here.sequences[0, -8:].tolist(), torch.cat(here.logits).sum(0).tolist()]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [wanted, wanted]


def test_any_flat_dict_is_kept(tmp_path: Path) -> None:
    """Names with dots, every type, views of one storage, numbers beside tensors, empty and scalar tensors."""
    model = make(num_hidden_layers=4)
    whole = torch.arange(12.0)
    states = [
        {"cms.0.up.weight": whole.view(1, 3, 4).mT, "start.w": whole[:6].expand(2, 6), "pos": torch.tensor([3, 4])},
        {
            "half": torch.randn(2, 3).bfloat16(),
            "double": torch.randn(2, dtype=torch.float64),
            "flag": torch.tensor([True]),
        },
        {"empty": torch.zeros(2, 0, 3), "scalar": torch.tensor(2.5), "step": 7, "rate": 0.1, "on": False, "name": "ü"},
        {"small": torch.tensor([-3], dtype=torch.int8), "x": torch.randn(1, requires_grad=True)},
    ]
    cache = HopeCache(4)
    for i, (layer, state) in enumerate(zip(cache.layers, states)):
        layer.write(state, 10 + i)
    model.save_memory(tmp_path / "a", cache)
    model.save_memory(tmp_path / "b", cache)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()  # equal states are one blob
    loaded = model.load_memory(tmp_path / "a")
    assert [layer.seen for layer in loaded.layers] == [10, 11, 12, 13]
    for old, new in zip(states, loaded.states):
        assert old.keys() == new.keys()
        for name, x in old.items():
            assert type(x) is type(new[name])
            same = (
                torch.equal(x, new[name]) and x.dtype == new[name].dtype
                if isinstance(x, torch.Tensor)
                else x == new[name]
            )
            assert same, name
    assert not loaded.states[3]["x"].requires_grad
    cache.layers[0].write({"list": [1]}, 1)
    with pytest.raises(ValueError, match="layer 0 holds 'list', a list: only tensors and numbers are saved"):
        model.save_memory(tmp_path / "a", cache)


@pytest.mark.parametrize(
    ("settings", "field", "values"),
    [
        (dict(mixers=["titans"]), "mixers", ("['gated_deltanet', 'sliding_attention'", "['titans', 'titans'")),
        (dict(hidden_size=64), "hidden_size", ("32", "64")),
        (dict(num_attention_heads=8), "num_attention_heads", ("4", "8")),
        (dict(num_key_value_heads=4), "num_key_value_heads", ("2", "4")),
        (dict(num_hidden_layers=8), "num_hidden_layers", ("4", "8")),
        (dict(chunk=16), "chunk", ("8", "16")),
        (dict(conv_window=3), "conv_window", ("4", "3")),
        (dict(sliding_window=13), "sliding_window", ("12", "13")),
        (dict(rope_theta=500.0), "rope_theta", ("10000.0", "500.0")),
        (dict(memory_hidden=5), "memory_hidden", ("None", "5")),
    ],
)
def test_another_architecture_is_refused_by_name(saved, settings: dict, field: str, values: tuple[str, str]) -> None:
    _, path = saved
    for options in ({}, {"any_base": True}):
        with pytest.raises(ValueError) as error:
            make(**settings).load_memory(path, **options)
        message = str(error.value)
        assert message.split(": ")[1].startswith(f"{field}=")
        assert f"{field}={values[0]}" in message and f"but {field}={values[1]}" in message
        assert f"load it into a model with {field}=" in message


def test_another_type_is_refused(saved) -> None:
    model, path = saved
    with pytest.raises(ValueError, match="dtype='float32' in this memory, but dtype='bfloat16' in this model"):
        model.bfloat16().load_memory(path)


def test_other_weights_are_refused_unless_wanted(saved) -> None:
    model, path = saved
    other = make(seed=1)
    with pytest.raises(
        ValueError, match=r"written by base weights [0-9a-f]{12}, but this model has [0-9a-f]{12}.*any_base"
    ):
        other.load_memory(path)
    assert other.load_memory(path, any_base=True).get_seq_length() == 21
    with torch.no_grad():  # one number of one weight is enough
        model.model.layers[2].levels.levels[0].up.weight[3, 3].mul_(1.0001)
    with pytest.raises(ValueError, match="base weights"):
        model.load_memory(path)


def test_what_decides_nothing_may_differ(saved) -> None:
    model, path = saved
    model.config.use_cache, model.config.pad_token_id, model.config.initializer_range = False, 3, 0.5
    assert model.load_memory(path).get_seq_length() == 21
    assert model.model.load_memory(path).get_seq_length() == 21  # the stack alone has the same memory


def test_damaged_files_are_refused(saved) -> None:
    """Cut anywhere, changed anywhere: one ValueError with the path, never an error of safetensors."""
    model, path = saved
    content = path.read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    for size in (0, 1, 7, 8, 9, head - 1, head, head + 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"memory.safetensors is damaged.*give a file that save_memory wrote"):
            model.load_memory(path)
    step = len(content) // 60
    for at in [*range(0, len(content), step), 20, head - 5, head + 3]:
        changed = bytearray(content)
        changed[at] ^= 0x11
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"memory\.safetensors"):
            model.load_memory(path)
    path.write_bytes(content)
    assert model.load_memory(path).get_seq_length() == 21


def test_foreign_files_are_refused(saved, tmp_path: Path) -> None:
    model, path = saved
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "notes.txt").write_text("Mira lives in Oslo.")
    header = json.loads(safetensors.safe_open(path, "pt").metadata()["circadia"])
    newer = safetensors.torch.save({}, {"circadia": json.dumps(header | {"version": 2})})
    (tmp_path / "newer").write_bytes(newer)
    (tmp_path / "odd").write_bytes(safetensors.torch.save({}, {"circadia": "[1]"}))
    for name, message in [
        ("base/model.safetensors", "is a safetensors file but holds no memory, perhaps weights"),
        ("notes.txt", "is damaged or no memory file"),
        ("nowhere", "is not a file"),
        ("base", "is not a file"),
        ("newer", "format version 2, this Circadia reads 1"),
        ("odd", "is damaged \\(its header cannot be read\\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.load_memory(tmp_path / name)


def test_wrong_caches_are_not_saved(tmp_path: Path) -> None:
    model = make()
    with pytest.raises(ValueError, match="cache is empty: let the model read something"):
        model.save_memory(tmp_path / "m", HopeCache(4))
    with pytest.raises(ValueError, match="cache has 2 layers, the model num_hidden_layers=4"):
        model.save_memory(tmp_path / "m", HopeCache(2))
    with pytest.raises(ValueError, match="cache is a list"):
        model.save_memory(tmp_path / "m", [])
    assert not (tmp_path / "m").exists()


WRITER = """
import os, signal, sys, time, torch
from circadia.models import HopeCache, HopeConfig, HopeForCausalLM
torch.set_num_threads(1)
model = HopeForCausalLM(HopeConfig(mixers=["linear"], hidden_size=32, num_hidden_layers=1)).eval()
path, cache = sys.argv[1], HopeCache(1)
model(torch.ones(1, 5, dtype=torch.long), past_key_values=cache, use_cache=True)
def halves():
    return sum(name.endswith(".tmp") for name in os.listdir(os.path.dirname(path)))
first, kills, left = 0, 0, 0
while kills < 4 or not left and kills < 60:
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        for i in range(first, 1 << 30):
            cache.layers[0].state["big"] = torch.full((1, 1 << 20), float(i))
            model.save_memory(path, cache)
            os.write(tell, b".")
    os.read(told, 1)
    while halves() == left:  # until the next write has begun
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    big = model.load_memory(path).states[0]["big"]
    assert big.min() == big.max() >= first
    first, kills, left = int(big[0, 0]) + 1, kills + 1, halves()
print(left)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writer is a forked process")
def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    """Really killed, several times and at least once in the middle of a write: half a file is beside, none in place."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "memory.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(saved, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the old file stays, nothing is left beside it."""
    model, path = saved
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        model.save_memory(path, read(model, text(2, 3))[1])
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
