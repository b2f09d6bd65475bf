"""torch.compile, torch.export and torch.func on the model: values and gradients as without them, for any batch."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import pytest
import torch
from conftest import TINY, random_documents
from torch.func import functional_call, grad

from bgpt_fast import BGPT, PackedPatches, byte_decoder
from bgpt_fast.export_program import export_program

LONG = dataclasses.replace(TINY, patch_length=100)
"""Its longer documents are not those of the op for short ones."""


SIZES = ([9, 0, 33, 1, 16, 300], [3, 5], [40] * 9, [0, 0, 70], [70])
LONG_SIZES = ([9, 0, 33, 1, 16, 300], [3, 280], [40] * 9 + [330], [0, 0, 390], [390])
"""The longest document has more than 64 patches: it and the op for short documents are two graphs."""


def batches(sizes: Sequence[list[int]] = SIZES) -> list[PackedPatches]:
    return [PackedPatches.from_bytes(random_documents(i, batch), LONG) for i, batch in enumerate(sizes)]


def gradients(model: BGPT, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    unused = "patch_level_decoder.base.wte.weight"
    named = {name: parameter for name, parameter in model.named_parameters() if name != unused}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    error = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"{what}: relative error {error:.2e}"


def check_compiled(backend: str) -> None:
    """Compiled forward, backward and scoring are those of the model, with one graph for all batches; of scoring, whose
    results are of size B, with another one for batches of one document.
    """
    torch.manual_seed(0)
    model = BGPT(LONG).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    score = torch.compile(model.log_likelihood, backend=backend, fullgraph=True, dynamic=True)
    for index, batch in enumerate(batches(LONG_SIZES)):
        later = "fail_on_recompile" if index else "default"
        with torch.compiler.set_stance(later):
            out = compiled(batch)
        with torch.compiler.set_stance(later if batch.num_documents > 1 else "default"):
            scores = score(batch)
        expected = model(batch)
        assert_close(out.nats, expected.nats, "nats")
        assert_close(scores.nats, model.log_likelihood(batch).nats, "log-likelihood")
        expected_gradients = gradients(model, expected.loss)
        for name, gradient in gradients(model, out.loss).items():
            assert_close(gradient, expected_gradients[name], name)
    torch._dynamo.reset()


def test_the_forward_pass_is_traced_with_symbolic_sizes() -> None:
    """In seconds, where the slow tests below compare gradients and later batches."""
    torch.manual_seed(0)
    model, (first, *_, one) = BGPT(LONG).eval(), batches(LONG_SIZES)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    assert_close(compiled(first).nats, model(first).nats, "nats")
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(compiled(one).nats, model(one).nats, "nats of a batch of one document")
    torch._dynamo.reset()


@pytest.mark.slow  # half a minute: every op is traced
@pytest.mark.timeout(900)
def test_a_compiled_model_is_one_graph_for_all_batches() -> None:
    check_compiled("aot_eager")


@pytest.mark.slow  # a minute: Inductor compiles C++
@pytest.mark.timeout(1800)
def test_inductors_code_is_equal_for_all_batches() -> None:
    check_compiled("inductor")


def test_scoring_is_compiled_in_evaluation_mode_alone() -> None:
    model = BGPT(LONG).train()
    with pytest.raises(Exception, match=r"model\.eval\(\)"):
        torch.compile(model.log_likelihood, backend="eager", fullgraph=True)(batches()[0])


@pytest.mark.parametrize("method", ["forward", "log_likelihood"])
def test_an_exported_program_is_equal_for_all_batches(method: str) -> None:
    torch.manual_seed(0)
    model = BGPT(LONG).eval()
    file = io.BytesIO()
    torch.export.save(export_program(model, method), file)  # type: ignore[arg-type]
    file.seek(0)
    program = torch.export.load(file).module()
    for batch in batches()[: None if method == "forward" else -1]:
        outputs, expected = program(batch.patches, batch.cu_seqlens), getattr(model, method)(batch)
        for output, value in zip(outputs, expected, strict=True):
            assert output.shape == value.shape
            assert_close(output.double(), value.double(), method)


def test_what_cannot_be_exported_is_named() -> None:
    with pytest.raises(TypeError, match="expected a BGPT, got Linear"):
        export_program(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected evaluation mode"):
        export_program(BGPT(TINY))
    with pytest.raises(ValueError, match='expected "forward" or "log_likelihood", got \'generate\''):
        export_program(BGPT(TINY).eval(), "generate")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_func_gives_the_gradients(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the model itself computes in chunks, and where weights are converted by autocast."""
    monkeypatch.setattr(byte_decoder, "CHUNK", 8)
    torch.manual_seed(0)
    model, batch = BGPT(LONG).eval(), batches()[0]

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return functional_call(model, parameters, (batch,)).loss

    parameters = dict(model.named_parameters())
    by_func = grad(loss)({name: parameter.detach() for name, parameter in parameters.items()})
    tolerance = 1e-5 if dtype == torch.float32 else 2.0**-6
    for name, gradient in gradients(model, loss(parameters)).items():
        assert gradient.abs().max() > 0
        assert_close(by_func[name], gradient, name, tolerance)
