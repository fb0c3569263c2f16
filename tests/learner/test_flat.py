"""A module as one flat tensor, and back."""

import math

import pytest
import torch
from torch import nn

from peer.errors import DataError
from peer.learner.flat import FlatModel, signature_bytes, unflatten


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_what_is_written_is_what_is_read() -> None:
    flat = FlatModel(network())
    x = torch.rand(flat.size)
    flat.write(x)
    assert torch.equal(flat.read(), x)


@pytest.mark.parametrize("gathered", [False, True])
def test_the_pieces_are_what_is_read_and_the_modules_own_memory(gathered: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    flat = FlatModel(module)
    if gathered:
        flat.gather()
    pieces = list(flat.pieces())
    assert len(pieces) == (1 if gathered else 4)
    assert torch.equal(torch.cat(pieces), flat.read())
    assert pieces[0].data_ptr() == module[0].weight.data_ptr()
    half = FlatModel(nn.Linear(2, 1, dtype=torch.float16))
    assert [piece.dtype for piece in half.pieces()] == [torch.float32] * 2


def test_float_buffers_travel_and_counters_do_not() -> None:
    flat = FlatModel(network())
    names = [name for name, _, _ in flat.signature]
    assert "1.running_mean" in names
    assert "1.num_batches_tracked" not in names
    assert flat.parameters == sum(p.numel() for p in network().parameters())


def test_a_running_variance_never_goes_negative() -> None:
    module = network()
    flat = FlatModel(module)
    flat.write(torch.full((flat.size,), -1.0))
    assert module.state_dict()["1.running_var"].min() == 0


def test_an_optimizer_still_trains_the_model_after_a_write() -> None:
    module = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    flat = FlatModel(module)
    flat.write(torch.zeros(2))
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(flat.read(), torch.tensor([-1.0, -1.0]))


def test_a_tied_weight_is_there_once_and_a_frozen_one_not_at_all() -> None:
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    module[2].requires_grad_(False)
    assert FlatModel(module).sizes == (9,)


def test_half_precision_weights_are_averaged_in_float32_and_keep_their_type() -> None:
    module = nn.Linear(2, 2).bfloat16()
    flat = FlatModel(module)
    assert flat.read().dtype == torch.float32
    flat.write(torch.zeros(flat.size))
    assert module.weight.dtype == torch.bfloat16


def test_double_precision_stays_double() -> None:
    assert FlatModel(nn.Linear(2, 2).double()).read().dtype == torch.float64


def test_names_shapes_and_types_make_the_signature() -> None:
    same, other = FlatModel(network()), FlatModel(nn.Linear(3, 4))
    assert signature_bytes(same.signature) == signature_bytes(FlatModel(network()).signature)
    assert signature_bytes(other.signature) == b'[["weight",[4,3],"float32"],["bias",[4],"float32"]]'


def test_named_tensors_load_into_the_module() -> None:
    module = network()
    flat = FlatModel(module)
    other = network()
    FlatModel(other).write(torch.zeros(flat.size))
    other.load_state_dict(flat.named(flat.read()), strict=False)
    assert torch.equal(FlatModel(other).read(), flat.read())


def test_a_model_of_another_size_is_an_error() -> None:
    with pytest.raises(DataError, match="4 numbers does not fit a signature of 3"):
        unflatten(torch.zeros(4), [("w", [3], "float32")])


def test_a_model_without_parameters_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to train"):
        FlatModel(nn.ReLU())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found_in_any_tensor(wrong: float, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).to(dtype)
    flat = FlatModel(model)
    flat.write(torch.arange(flat.size, dtype=flat.dtype) - flat.size)
    assert flat.size <= flat.bound() < flat.size**2
    for tensor in flat._tensors.values():
        before = tensor.data.clone()
        tensor.data.view(-1)[-1] = wrong
        assert not math.isfinite(flat.bound())
        tensor.data.copy_(before)
    assert flat.size <= flat.bound() < flat.size**2
