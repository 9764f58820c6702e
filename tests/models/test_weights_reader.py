import pytest
import torch
from safetensors.torch import save_file

from latentkv.errors import CheckpointError
from latentkv.models.weights import SafetensorsSource, TensorReader
from support.compare import assert_close


def reader(folder, *, ignorable=(), **tensors):
    save_file(tensors, folder / "model.safetensors")
    return TensorReader(SafetensorsSource(folder), ignorable=ignorable)


def test_a_fitting_checkpoint_finishes_silently(tmp_path):
    tensors = reader(tmp_path, a=torch.arange(6.0).view(2, 3))
    taken = tensors.take("a", (2, 3), torch.bfloat16)
    assert_close(taken, torch.arange(6).view(2, 3).bfloat16(), tolerance="exact")
    assert tensors.optional("b", (1,), None) is None
    assert "a" in tensors
    tensors.finish()
    assert tensors.ignored == ()


def test_all_problems_are_told_at_once_by_name_with_shapes(tmp_path):
    tensors = reader(tmp_path, a=torch.ones(2, 3), extra=torch.ones(1))
    assert tensors.take("a", (3, 2), torch.float32).shape == (3, 2)
    assert tensors.take("gone", (7,), torch.float32).device.type == "meta"
    with pytest.raises(CheckpointError) as caught:
        tensors.finish()
    message = str(caught.value)
    assert "1 missing (gone [7])" in message
    assert "a: expected [3, 2], got [2, 3]" in message
    assert "1 not part of the model (extra)" in message


def test_long_lists_are_cut(tmp_path):
    tensors = reader(tmp_path, **{f"t{index:02}": torch.ones(1) for index in range(25)})
    with pytest.raises(CheckpointError, match=r"25 not part of the model .*t19 \.\.\. and 5 more"):
        tensors.finish()


def test_ignorable_tensors_are_reported_and_do_not_fail(tmp_path):
    tensors = reader(tmp_path, ignorable=[r"rotary_emb\.inv_freq$"], **{"x.rotary_emb.inv_freq": torch.ones(2)})
    tensors.finish()
    assert tensors.ignored == ("x.rotary_emb.inv_freq",)
