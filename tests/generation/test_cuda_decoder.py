"""The engines of a GPU on the CPU: graphs as plain calls; the persistent kernel is in test_byte_decode_on_host.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from generation.test_cpu_decoder import SHAPES, random_model, rows
from torch import Tensor

from bgpt_fast import _C, BGPT, BGPTConfig, Generation, Generator, Prompt
from bgpt_fast.device import Replay
from bgpt_fast.generation import on_device
from bgpt_fast.generation.decoder import EagerDecoder
from bgpt_fast.generation.device_layers import ByteWeights
from bgpt_fast.generation.fused import PackedModel
from bgpt_fast.generation.graphed import LEAST_ROWS, MOST_ROWS, GraphedByteDecoder, _Room, bucket_of
from bgpt_fast.generation.on_device import PERSISTENT_ROWS, CudaDecoder, DeviceModel
from bgpt_fast.generation.persistent import MOST_ROWS as PERSISTENT_MOST
from bgpt_fast.generation.persistent import PersistentByteDecoder
from bgpt_fast.generation.sampling import Sampling, choose
from bgpt_fast.generation.scoring import _Decoders, _score, context_bytes, score
from bgpt_fast.generation.writing import DecodeRequest, DecodeResult

GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=7)
CONFIG = SHAPES["plain"]


def at_once(step: Replay) -> Replay:
    """As recording does, runs the step before it is asked for."""
    step()
    return step


def writing_of(call: dict[str, Tensor]) -> DecodeRequest:
    indices, starts = ([int(n) for n in call[name].view(torch.int64)] for name in ("indices", "starts"))
    return DecodeRequest(call["given"], call["room"], None, None, indices, starts)


def on_cpu(model: BGPT, call: dict[str, Tensor], sampling: Sampling) -> DecodeResult:
    decoded = PackedModel(model, "float32").byte_decoder.decode(**call, **vars(sampling))
    return DecodeResult(decoded.tokens.tolist(), decoded.counts.tolist())


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

    def decoder(self: Generator, slots: int, length: int) -> CudaDecoder:
        engine = engines.setdefault(id(self), DeviceModel(model, "float32", at_once))
        engine.reload(model)
        return CudaDecoder(engine, slots, length)

    monkeypatch.setattr(Generator, "_decoder", decoder)
    generator = Generator(model)
    assert generator.generate(prompts, **options) == expected
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    changed = generator.generate(prompts, **options)
    assert changed != expected
    monkeypatch.setattr(Generator, "_decoder", lambda self, slots, length: EagerDecoder(model, slots, length))
    assert changed == Generator(model).generate(prompts, **options)


def bits(engine: GraphedByteDecoder, features: Tensor, patches: Tensor) -> Tensor:
    """[N, S, V]: the logits of all bytes of some patches."""
    cache = engine.new_cache(len(features))
    found = []
    for s in range(engine.weights.patch_size):
        inputs = features if s == 0 else engine.weights.wte[patches[:, s - 1].long()]
        found.append(engine.logits(inputs + engine.weights.wpe[s], *cache, s))
    return torch.stack(found, 1)


def test_batch_invariant_logits_are_a_patch_s_own() -> None:
    model, call = random_model(CONFIG), rows(CONFIG, 40)
    features, patches = call["features"], call["given"].clamp(min=0)
    with torch.inference_mode():
        for invariant in (True, False):
            engine = GraphedByteDecoder(ByteWeights(model, "float32"), at_once, batch_invariant=invariant)
            together = bits(engine, features, patches)
            alone = [
                torch.cat([bits(engine, features[n : n + size], patches[n : n + size]) for n in range(0, 40, size)])
                for size in (1, 2, 3, 7)
            ]
            # The library's differ, and must, for the test to say anything.
            assert all(torch.equal(one, together) for one in alone) == invariant
            exact = random_model(CONFIG).double().byte_level_decoder.logits(features.double(), patches)
            torch.testing.assert_close(together, exact.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batch_invariant_graphs_write_what_the_model_says(precision: str) -> None:
    model, call = random_model(CONFIG), rows(CONFIG, 9)
    with torch.inference_mode():
        engine = GraphedByteDecoder(ByteWeights(model, precision), at_once, batch_invariant=True)
        found = engine.write(call["features"], writing_of(call), SAMPLED)
        if precision == "float32":
            assert found == on_cpu(model, call, SAMPLED)
        exact = random_model(CONFIG).double().byte_level_decoder.logits(call["features"].double(), call["given"] * 0)
        plain = bits(GraphedByteDecoder(ByteWeights(model, precision)), call["features"], call["given"] * 0)
        own = bits(engine, call["features"], call["given"] * 0)
    assert (own - exact).abs().max() <= 2 * (plain - exact).abs().max()


def invariant_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every Generator use the batch-invariant engine of a GPU."""

    def decoder(self: Generator, slots: int, length: int) -> CudaDecoder:
        return CudaDecoder(DeviceModel(self.model, "float32", at_once, batch_invariant=True), slots, length)

    monkeypatch.setattr(Generator, "_decoder", decoder)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}], ids=["greedy", "sampled"])
def test_a_file_is_the_same_in_any_batch(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours that end sooner included: prompts end at all places of a patch, files where the context does."""
    model = random_model(CONFIG)
    room = context_bytes(CONFIG)
    prompts = [Prompt("bin", bytes(value % 256 for value in range(room - 1 - n)), n) for n in range(30)]
    expected = Generator(model).generate(prompts, **options)
    invariant_engines(monkeypatch)
    together = Generator(model).generate(prompts, **options)
    assert len({len(file.new_bytes) for file in together}) > 3
    for batch in (1, 3):
        assert Generator(model, max_batch=batch).generate(prompts, **options) == together
    assert Generator(model).generate(prompts[3:4], **options) == together[3:4]
    assert together == expected


def test_scores_have_the_bits_of_batch_invariant_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(CONFIG)
    seen: dict[tuple[int, int], Tensor] = {}
    accept = GraphedByteDecoder._accept

    def recording(self: GraphedByteDecoder, logits: Tensor, room: _Room, s: int) -> None:
        going = room.going.bool()
        accept(self, logits, room, s)
        for n in going.nonzero().flatten().tolist():
            seen[int(room.indices[n]), int(room.starts[n]) + s] = logits[n].clone()

    invariant_engines(monkeypatch)
    prompts = [Prompt("bin", bytes(range(n)), n) for n in range(9)]
    with monkeypatch.context() as patch:
        patch.setattr(GraphedByteDecoder, "_accept", recording)
        files = Generator(model, max_batch=4).generate(prompts, temperature=1.0, max_new_bytes=20)
    documents = [("bin", file.data) for file in files]
    decoders = _Decoders(model, None)
    decoders._packed, decoders._on_device = None, DeviceModel(model, "float32", lambda step: step, batch_invariant=True)
    with torch.inference_mode():
        scored = list(_score(decoders, documents, 5))
    assert len(seen) >= sum(len(file.new_bytes) for file in files) > 100
    compared = [(scored[index][place], row) for (index, place), row in seen.items() if place < len(scored[index])]
    assert len(compared) > 100
    assert all(torch.equal(one, other) for one, other in compared)
    decoders._on_device = DeviceModel(model, "float32", lambda step: step)
    with torch.inference_mode():
        library = list(_score(decoders, documents, 5))
    assert not all(torch.equal(one, other) for one, other in zip(library, scored, strict=True))
    damaged = DeviceModel(model, "float32", lambda step: step, batch_invariant=True)
    damaged.bytes.head[0, 0] = torch.nan
    decoders._on_device = damaged
    with pytest.raises(FloatingPointError, match="weights are damaged"):
        list(_score(decoders, documents, 5))


def test_what_batch_invariant_may_be() -> None:
    model, prompt = random_model(CONFIG), Prompt("bin", b"ab")
    found = {
        tuple(Generator(model, batch_invariant=each).generate([prompt], max_new_bytes=9))
        for each in (None, True, False)
    }
    assert len(found) == 1
    with pytest.raises(TypeError, match="batch_invariant: expected a bool or None, got int"):
        Generator(model, batch_invariant=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_invariant: expected None or False on meta, got True"):
        Generator(model.to("meta"), batch_invariant=True).generate([prompt])


@pytest.mark.parametrize("with_cuda", [True, False])
def test_a_gpu_is_served_by_the_engines_where_they_were_built(with_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "_C", SimpleNamespace(with_cuda=with_cuda))
    assert on_device.has_engines(torch.device("cuda", 0)) == with_cuda
    assert not on_device.has_engines(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batch_invariance_on_a_gpu(precision: str) -> None:
    model = random_model(CONFIG).cuda()
    prompts = [Prompt("bin", bytes(range(n % 30)), n) for n in range(100)]

    def written(batch: int, some: list[Prompt] = prompts) -> list[Generation]:
        generator = Generator(model, max_batch=batch, precision=precision, batch_invariant=True)
        return generator.generate(some, temperature=0.9, seed=3)

    together = written(128)
    for batch in (1, 2, 3, 7, 64):
        assert written(batch) == together
    assert [written(1, [prompt])[0] for prompt in prompts[:5]] == together[:5]
    scored = list(score(model, [("bin", file.data) for file in together], precision=precision))
    for index, (file, rows_) in enumerate(zip(together, scored, strict=True)):
        tokens = [*file.new_bytes, 256] if file.finished else [*file.new_bytes]
        at = range(file.prompt_bytes, file.prompt_bytes + len(tokens))
        drawn = choose(rows_[at.start : at.stop].cpu(), Sampling(temperature=0.9, seed=3), [index] * len(tokens), at)
        assert drawn == tokens


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
