"""The engines of a GPU on the CPU: graphs as plain calls; the persistent kernel is in test_byte_decode_on_host.py."""

from __future__ import annotations

import pytest
import torch
from test_generation_packed import SHAPES, random_model, rows
from torch import Tensor

from bgpt_fast import _C, BGPT, BGPTConfig, Generator, Prompt
from bgpt_fast.device import Replay
from bgpt_fast.generation.decoder import CachedDecoder
from bgpt_fast.generation.device_layers import ByteWeights
from bgpt_fast.generation.fused import PackedModel
from bgpt_fast.generation.graphed import LEAST_ROWS, MOST_ROWS, GraphedByteDecoder, bucket_of
from bgpt_fast.generation.on_device import PERSISTENT_ROWS, DeviceDecoder, DeviceModel
from bgpt_fast.generation.persistent import MOST_ROWS as PERSISTENT_MOST
from bgpt_fast.generation.persistent import PersistentByteDecoder
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.writing import Writing, Written

GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=7)
CONFIG = SHAPES["plain"]


def at_once(step: Replay) -> Replay:
    """As recording does, runs the step before it is asked for."""
    step()
    return step


def writing_of(call: dict[str, Tensor]) -> Writing:
    indices, starts = ([int(n) for n in call[name].view(torch.int64)] for name in ("indices", "starts"))
    return Writing(call["given"], call["room"], None, None, indices, starts)


def on_cpu(model: BGPT, call: dict[str, Tensor], sampling: Sampling) -> Written:
    decoded = PackedModel(model, "float32").byte_decoder.decode(**call, **vars(sampling))
    return Written(decoded.tokens.tolist(), decoded.counts.tolist())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_graphs_write_what_the_engine_of_the_cpu_writes(name: str, sampling: Sampling) -> None:
    """No near tie of these seeds falls within rounding."""
    model = random_model(SHAPES[name])
    engine = GraphedByteDecoder(ByteWeights(model, "float32"), at_once)
    for count in (1, LEAST_ROWS + 1, 3):
        call = rows(SHAPES[name], count, count)
        with torch.inference_mode():
            found = engine.write(call["features"], writing_of(call), sampling)
        assert found == on_cpu(model, call, sampling)


def test_a_graph_with_other_weights_is_noticed() -> None:
    model = random_model(CONFIG)
    call = rows(CONFIG, 5)
    with torch.inference_mode():
        found = GraphedByteDecoder(ByteWeights(random_model(CONFIG, 1), "float32"), at_once)
        assert found.write(call["features"], writing_of(call), GREEDY) != on_cpu(model, call, GREEDY)


def test_bfloat16_errs_no_more_than_the_model_in_it() -> None:
    model = random_model(CONFIG)
    weights = ByteWeights(model, "bfloat16")
    engine = GraphedByteDecoder(weights, at_once)
    stream = torch.Generator().manual_seed(1)
    patches = torch.randint(0, 257, (7, CONFIG.patch_size), generator=stream, dtype=torch.int16)
    features = torch.randn(7, CONFIG.hidden_size, generator=stream)
    cache = torch.zeros(
        2, len(weights.layers), 7, weights.heads, CONFIG.patch_size, 64 // weights.heads, dtype=torch.bfloat16
    )
    found = []
    with torch.inference_mode():
        for s in range(CONFIG.patch_size):
            inputs = features if s == 0 else weights.wte[patches[:, s - 1].long()]
            found.append(engine.logits(inputs + weights.wpe[s], *cache, s))
        exact = random_model(CONFIG).double().byte_level_decoder.logits(features.double(), patches)
        plain = model.bfloat16().byte_level_decoder.logits(features.bfloat16(), patches)
    assert (torch.stack(found, 1) - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_rows_of_graphs() -> None:
    assert [bucket_of(n) for n in (1, 8, 9, 64, 65, 4096, 9000)] == [8, 8, 16, 64, 128, 4096, 4096]
    assert LEAST_ROWS <= PERSISTENT_ROWS <= PERSISTENT_MOST < MOST_ROWS


def test_more_patches_than_a_graph_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpt_fast.generation.graphed.MOST_ROWS", 8)
    model, call = random_model(CONFIG), rows(CONFIG, 19)
    with torch.inference_mode():
        engine = GraphedByteDecoder(ByteWeights(model, "float32"), at_once)
        assert engine.write(call["features"], writing_of(call), SAMPLED) == on_cpu(model, call, SAMPLED)


def test_graphs_know_bad_logits_from_rows_that_have_ended() -> None:
    model, call = random_model(CONFIG), rows(CONFIG, 4)
    call["features"][2] = torch.nan
    with torch.inference_mode():
        found = GraphedByteDecoder(ByteWeights(model, "float32"), at_once).write(
            call["features"], writing_of(call), GREEDY
        )
    assert [count < 0 for count in found.counts] == [False, False, True, False]


def test_which_shapes_the_kernel_takes() -> None:
    def takes(**changes: int) -> bool:
        config = BGPTConfig(**{"patch_length": 4, "patch_num_layers": 1, "byte_num_layers": 1, **changes})
        with torch.device("meta"):
            return PersistentByteDecoder.takes(ByteWeights(BGPT(config), "float32"))

    assert takes()
    assert takes(hidden_size=64, num_heads=8)
    assert not takes(hidden_size=36, num_heads=3)  # heads of 12 channels
    assert not takes(hidden_size=1024)
    assert not takes(hidden_size=768, num_heads=2)
    assert not takes(hidden_size=64, patch_size=33)
    assert not takes(hidden_size=64, byte_num_layers=9)
    assert takes(hidden_size=64, patch_size=32, byte_num_layers=8)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_k": 50, "seed": 3}], ids=["greedy", "sampled"])
def test_a_generator_on_them_writes_the_same_files(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(CONFIG)
    prompts = [Prompt("bin", bytes(range(n))) for n in (0, 5, 16)]
    options = {**options, "max_new_bytes": 20}
    expected = Generator(model).generate(prompts, **options)
    engines: dict[int, DeviceModel] = {}

    def decoder(self: Generator, slots: int, length: int) -> DeviceDecoder:
        engine = engines.setdefault(id(self), DeviceModel(model, "float32", at_once))
        engine.reload(model)
        return DeviceDecoder(engine, slots, length)

    monkeypatch.setattr(Generator, "_decoder", decoder)
    generator = Generator(model)
    assert generator.generate(prompts, **options) == expected
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    changed = generator.generate(prompts, **options)
    assert changed != expected
    monkeypatch.setattr(Generator, "_decoder", lambda self, slots, length: CachedDecoder(model, slots, length))
    assert changed == Generator(model).generate(prompts, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_both_engines_on_a_gpu(sampling: Sampling) -> None:
    model = random_model(CONFIG)
    device = DeviceModel(random_model(CONFIG).cuda(), "float32")
    assert device.persistent is not None
    for count in (1, 2, 3, 9, 65):
        call = rows(CONFIG, count, count)
        expected = on_cpu(model, call, sampling)
        with torch.inference_mode():
            for engine in (device.persistent, device.graphed):
                assert engine.write(call["features"].cuda(), writing_of(call), sampling) == expected


def test_the_bindings_refuse_what_does_not_fit() -> None:
    with pytest.raises(TypeError):
        _C.persistent_takes((64, 1))
