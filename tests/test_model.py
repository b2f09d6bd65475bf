"""BGPT against the reference, and both against the paper's model as assembled from Hugging Face's GPT-2."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from conftest import TINY, random_documents, randomised

from benchmarks.hugging_face import HuggingFaceBGPT
from bgpt_fast import BGPT, BGPTConfig, Generator, PackedPatches, Prompt, ReferenceBGPT
from bgpt_fast.checkpoint import save_released
from bgpt_fast.checkpoint.schema import LM_HEAD, PATCH_EMBEDDING, validate_state_dict

SHAPES = {
    "several heads, patches of 4": (TINY, [9, 0, 33, 1, 16, 64]),
    "the paper's patch, one head": (BGPTConfig(16, 40, 48, 1, 3), [100, 15, 16, 17, 256]),
    "equal lengths, more heads for bytes": (BGPTConfig(8, 16, 64, 3, 1, num_heads=2, byte_num_heads=8), [40, 40, 40]),
    "one byte a patch, one document": (BGPTConfig(1, 16, 32, 1, 1), [7]),
}


@pytest.fixture(params=SHAPES, name="case")
def _case(request: pytest.FixtureRequest) -> tuple[BGPTConfig, PackedPatches]:
    config, sizes = SHAPES[request.param]
    return config, PackedPatches.from_bytes(random_documents(1, sizes), config)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if isinstance(model, BGPT):  # keeps it transposed
        grads[PATCH_EMBEDDING] = grads[PATCH_EMBEDDING].t()
    return grads


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Relative to the largest entry: single entries of a sum that cancels have no digits of their own."""
    error = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"


def test_bgpt_reference_and_hugging_face_are_equal(case: tuple[BGPTConfig, PackedPatches]) -> None:
    config, batch = case
    reference = randomised(ReferenceBGPT(config))
    model, peer = BGPT(config).eval(), HuggingFaceBGPT(config).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    peer.load_state_dict(model.state_dict(), strict=True)
    out, expected, peer_loss = model(batch), reference(batch), peer(batch)
    assert_close(out.nats, expected.nats, 1e-5, "nats")
    results = [
        {"loss": loss, **gradients(module, loss)}
        for module, loss in ((model, out.loss), (reference, expected.loss), (peer, peer_loss))
    ]
    for ours, theirs in itertools.combinations(results, 2):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_close(ours[name], theirs[name], 1e-5, name)


def test_equality_check_catches_a_broken_model(tiny_batch: PackedPatches) -> None:
    """The negative control: an error of 1 % in one weight, or one lost LayerNorm bias, is beyond the tolerance."""
    torch.manual_seed(0)
    model = randomised(BGPT(TINY))
    nats = model(tiny_batch).nats
    for name, change in (
        ("patch_level_decoder.base.h.0.mlp.c_fc.weight", 1.01),
        ("byte_level_decoder.base.lm_head.weight", 1.01),
        ("byte_level_decoder.base.transformer.h.1.ln_2.bias", 0.0),
    ):
        broken = copy.deepcopy(model)
        broken.state_dict()[name].mul_(change)
        with pytest.raises(AssertionError, match="relative error"):
            assert_close(broken(tiny_batch).nats, nats, 1e-5, "nats")


def test_packed_equals_one_at_a_time(tiny_model: BGPT) -> None:
    documents = random_documents(2, [50, 3, 0, 17, 64, 64, 5])
    batch = PackedPatches.from_bytes(documents, TINY)
    packed = tiny_model(batch)
    alone = [tiny_model(PackedPatches.from_bytes([document], TINY)).nats for document in documents]
    assert_close(packed.nats, torch.cat(alone), 1e-5, "nats")


def test_a_document_never_sees_another(tiny_model: BGPT) -> None:
    documents = random_documents(3, [30, 30, 30])
    changed = [documents[0], ("txt", bytes(30)), documents[2]]
    nats = tiny_model(PackedPatches.from_bytes(documents, TINY)).nats
    other = tiny_model(PackedPatches.from_bytes(changed, TINY)).nats
    per_document = len(nats) // 3
    assert torch.equal(nats[:per_document], other[:per_document])
    assert torch.equal(nats[2 * per_document :], other[2 * per_document :])
    assert not torch.equal(nats[per_document : 2 * per_document], other[per_document : 2 * per_document])


def test_bf16_error_at_most_twice_the_plain_versions(tiny_batch: PackedPatches) -> None:
    reference = randomised(ReferenceBGPT(TINY))
    model = BGPT(TINY).eval()
    model.load_state_dict(reference.state_dict())
    half = copy.deepcopy(reference).bfloat16()
    truth = copy.deepcopy(reference).double()
    exact = truth(tiny_batch)
    ours, plain = model.bfloat16()(tiny_batch), half(tiny_batch)
    floor = 2.0**-8

    def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        difference = (actual.detach().double() - expected.detach()).abs().max()
        return float(difference / expected.detach().abs().max().clamp_min(1e-30))

    assert error(ours.nats, exact.nats) <= 2 * error(plain.nats, exact.nats) + floor
    expected = gradients(truth, exact.loss)
    ours_gradients, plain_gradients = gradients(model, ours.loss), gradients(half, plain.loss)
    for name in expected:
        allowed = 2 * error(plain_gradients[name], expected[name]) + floor
        assert error(ours_gradients[name], expected[name]) <= allowed, name


def test_targets_select_patches(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    everything = tiny_model(tiny_batch)
    some = everything.indices[[0, 3, 7]]
    chosen = tiny_model(tiny_batch, some)
    assert_close(chosen.nats, everything.nats[[0, 3, 7]], 1e-5, "nats")
    assert torch.equal(chosen.indices, some)


def test_the_last_patch_layer_computes_what_targets_need(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    targets = tiny_batch.target_indices()[[1, 4, 5]]
    decoder, rows = tiny_model.patch_level_decoder, []
    for block in decoder.base.h:
        block.mlp.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    arguments = tiny_batch.patches, tiny_batch.cu_seqlens, tiny_batch.max_seqlen

    def gradients(features: torch.Tensor) -> list[torch.Tensor]:
        weights = [weight for name, weight in decoder.named_parameters() if name != "base.wte.weight"]
        return list(torch.autograd.grad(features.square().sum(), weights))

    few, all_ = decoder(*arguments, rows=targets - 1), decoder(*arguments)[targets - 1]
    torch.testing.assert_close(few, all_)
    torch.testing.assert_close(gradients(few), gradients(all_))
    before = len(decoder.base.h) - 1
    patches = len(tiny_batch.patches)
    assert rows == [*[patches] * before, 3, *[patches] * (before + 1)]
    rows.clear()
    tiny_model(tiny_batch, targets)
    assert rows == [*[patches] * before, 3]


def test_targets_that_nothing_predicts_are_named(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    second = int(tiny_batch.cu_seqlens[1])
    for places in ([0], [3, second]):
        with pytest.raises(ValueError, match="no document's first patch"):
            tiny_model(tiny_batch, torch.tensor(places))
    for places in ([-1], [tiny_batch.num_patches]):
        with pytest.raises(ValueError, match="expected indices 0…"):
            tiny_model(tiny_batch, torch.tensor(places))
    for wrong in ([1], torch.tensor([[1]]), torch.ones(tiny_batch.num_patches, dtype=torch.bool)):
        with pytest.raises(TypeError, match="expected an int64 tensor"):
            tiny_model(tiny_batch, wrong)
    with pytest.raises(ValueError, match="at least one patch to predict"):
        tiny_model(tiny_batch, torch.empty(0, dtype=torch.int64))


def test_log_likelihood_leaves_each_modules_mode(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    tiny_model.train()
    tiny_model.patch_level_decoder.eval()
    tiny_model.log_likelihood(tiny_batch)
    assert tiny_model.training
    assert not tiny_model.patch_level_decoder.training


def test_global_defaults_change_nothing(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    """The C++ gets float32 on the CPU, whatever torch's default dtype and device are."""
    expected = tiny_model(tiny_batch)
    expected_gradients = gradients(tiny_model, expected.loss)
    documents = random_documents(0, [9, 0, 33, 1, 16, 64])
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            out = tiny_model(tiny_batch)
            assert torch.equal(out.nats, expected.nats)
            for name, gradient in gradients(tiny_model, out.loss).items():
                assert torch.equal(gradient, expected_gradients[name]), name
            files = Generator(tiny_model).generate([Prompt("bin", b"ab")], max_new_bytes=6)
            assert len(files[0].data) <= 8
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(PackedPatches.from_bytes(documents, TINY).patches, tiny_batch.patches)


def test_second_derivatives_are_refused(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    loss = tiny_model(tiny_batch).loss
    weight = tiny_model.patch_level_decoder.base.wpe.weight
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        gradient.square().sum().backward()


def test_logits_give_the_nats(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    out = tiny_model(tiny_batch)
    labels = tiny_batch.patches[out.indices].long()
    nats = -tiny_model.logits(tiny_batch).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    assert_close(nats, out.nats, 1e-5, "nats")


def test_log_likelihood_sums_each_document(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    scores = tiny_model.log_likelihood(tiny_batch)
    assert scores.nats.dtype == torch.float64
    assert scores.num_bytes.tolist() == [9, 0, 33, 1, 16, 64]
    out = tiny_model(tiny_batch)
    lengths = (tiny_batch.cu_seqlens.diff() - 1).tolist()
    expected = torch.stack([part.double().sum() for part in out.nats.split(lengths)])
    assert_close(scores.nats, expected, 1e-6, "nats")


def test_paper_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = BGPT(BGPTConfig())
    assert model.num_parameters() == 110_084_352
    validate_state_dict(BGPTConfig(), {name: t for name, t in model.state_dict().items() if name != LM_HEAD})


def test_initial_distribution_is_gpt2s() -> None:
    torch.manual_seed(0)
    model = BGPT(BGPTConfig(hidden_size=256, patch_num_layers=2, byte_num_layers=1, position_init_std=0.15))
    decoder = model.patch_level_decoder
    expected = {
        "patch_embedding": (decoder.patch_embedding.weight, 0.02),
        "c_attn": (decoder.base.h[0].attn.c_attn.weight, 0.02),
        "patch c_proj": (decoder.base.h[1].mlp.c_proj.weight, 0.01),
        "byte c_proj": (model.byte_level_decoder.base.transformer.h[0].attn.c_proj.weight, 0.02 / 2**0.5),
        "positions": (decoder.base.wpe.weight, 0.15),
    }
    for name, (weight, std) in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.05), name


def test_numeric_bytes_start_near_their_like() -> None:
    torch.manual_seed(0)
    config = BGPTConfig(hidden_size=256, patch_num_layers=1, byte_num_layers=1, byte_init="numeric", byte_init_std=0.1)
    model = BGPT(config)
    wte = model.byte_level_decoder.base.transformer.wte.weight.detach()
    slots = model.patch_level_decoder.patch_embedding.weight.detach().view(16, 257, 256)
    for table in (wte, slots[3]):
        assert table[:256].std().item() == pytest.approx(0.1, rel=0.1)
        direction = torch.nn.functional.normalize(table, dim=1)
        assert direction[100] @ direction[101] > 0.5 > direction[100] @ direction[27]
    assert not torch.equal(slots[3], slots[4])


def test_sinusoidal_positions_are_connected_by_rotations() -> None:
    config = BGPTConfig(patch_length=40, hidden_size=64, position_init="sinusoidal", position_init_std=0.3)
    wpe = BGPT(config).patch_level_decoder.base.wpe.weight.detach()
    assert wpe.square().mean().sqrt().item() == pytest.approx(0.3, rel=1e-5)
    # What two places have in common depends on their distance alone.
    for distance in (1, 3, 10):
        products = (wpe[:-distance] * wpe[distance:]).sum(1)
        torch.testing.assert_close(products, products[:1].expand_as(products), rtol=1e-4, atol=1e-4)


def test_dropout_only_while_training(tiny_batch: PackedPatches) -> None:
    torch.manual_seed(0)
    model = BGPT(BGPTConfig(**{**TINY.to_dict(), "dropout": 0.1}))
    assert not torch.equal(model(tiny_batch).nats, model(tiny_batch).nats)
    model.eval()
    assert torch.equal(model(tiny_batch).nats, model(tiny_batch).nats)


def test_saved_and_loaded_is_the_same(tmp_path, tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    state = torch.get_rng_state()
    loaded = BGPT.from_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.config == tiny_model.config
    assert not loaded.training
    assert loaded.byte_level_decoder.base.lm_head.weight is loaded.byte_level_decoder.base.transformer.wte.weight
    table = loaded.patch_level_decoder.patch_embedding.weight
    assert table.is_contiguous()
    assert table.shape == (TINY.patch_size * 257, TINY.hidden_size)
    assert torch.equal(loaded.state_dict()[PATCH_EMBEDDING], table.t())
    assert torch.equal(loaded(tiny_batch).nats, tiny_model(tiny_batch).nats)
    assert BGPT.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)(tiny_batch).loss.isfinite()
    save_released(tmp_path / "weights.pth", tiny_model.config, tiny_model.state_dict())
    assert torch.equal(BGPT.from_pretrained(tmp_path / "weights.pth")(tiny_batch).nats, tiny_model(tiny_batch).nats)


def test_compiled_model_is_equal(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    compiled = torch.compile(tiny_model, backend="aot_eager")
    assert_close(compiled(tiny_batch).nats, tiny_model(tiny_batch).nats, 1e-5, "nats")


def packed(size: int, config: BGPTConfig) -> PackedPatches:
    return PackedPatches.from_bytes([("bin", bytes(size))], config)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda b: "bytes", TypeError, "expected PackedPatches, got str"),
        (lambda b: packed(32, BGPTConfig(patch_size=16)), ValueError, "patches of 4 bytes, got 16"),
        (lambda b: packed(400, BGPTConfig(patch_size=4)), ValueError, "at most 24 patches, got 102"),
        (lambda b: b.to("meta"), ValueError, "expected device cpu"),
    ],
    ids=["type", "patch size", "length", "device"],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_named(
    tiny_model: BGPT, tiny_batch: PackedPatches, change, error, message
) -> None:
    with pytest.raises(error, match=message):
        tiny_model(change(tiny_batch))
    assert tiny_model(tiny_batch).loss.isfinite()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 0}, "patch_size: expected 1…65,536, got 0"),
        ({"patch_num_layers": 10**9}, "patch_num_layers: expected 1…4,096, got 1,000,000,000"),
        ({"patch_length": 10**12}, "patch_length: expected 2…2,147,483,647, got 1,000,000,000,000"),
        ({"hidden_size": 30, "num_heads": 4}, "divisor of hidden_size 30, got 4"),
        ({"hidden_size": 32, "byte_num_heads": 5}, "byte_num_heads: expected a divisor of hidden_size 32, got 5"),
        ({"position_init": "rotary"}, "position_init: expected one of"),
        ({"dropout": 1.0}, "expected 0 ≤ dropout < 1"),
        ({"position_init_std": 0.0}, "expected a positive number"),
    ],
)
def test_a_bad_config_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BGPTConfig(**fields)
    with pytest.raises(TypeError, match="dropout: expected a number, got str"):
        BGPTConfig(dropout="0.1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected an int, got str"):
        BGPTConfig(patch_length="512")  # type: ignore[arg-type]


def test_every_parameter_but_the_unused_wte_gets_a_gradient(tiny_model: BGPT, tiny_batch: PackedPatches) -> None:
    grads = gradients(tiny_model, tiny_model(tiny_batch).loss)
    missing = {name for name, _ in tiny_model.named_parameters()} - grads.keys()
    assert missing == {"patch_level_decoder.base.wte.weight"}
    assert all(gradient.abs().sum() > 0 for gradient in grads.values())
