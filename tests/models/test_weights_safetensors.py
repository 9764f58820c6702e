import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from latentkv.errors import CheckpointError, LatentKVError, UnsupportedModelError
from latentkv.models.weights import SafetensorsSource
from support.compare import assert_close
from support.tiny_gguf import damaged_copies


def tensors():
    torch.manual_seed(1)
    return {"a.weight": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.randn(2, 2).half()}


def saved(folder, **more):
    save_file(tensors() | more, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["a.weight", "b", "c"])
def test_reads_names_shapes_and_stored_values(tmp_path, name):
    source = SafetensorsSource(saved(tmp_path))
    expected = tensors()
    assert source.names() == frozenset(expected)
    assert source.shape(name) == tuple(expected[name].shape)
    assert_close(source.get(name, dtype=None), expected[name], tolerance="exact")
    assert_close(source.get(name, dtype=torch.float32), expected[name].float(), tolerance="exact")


def test_a_matching_dtype_is_a_view_of_the_mapped_file_and_never_changes_it(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    before = path.read_bytes()
    source = SafetensorsSource(path)
    first, second = source.get("a.weight", dtype=torch.float32), source.get("a.weight", dtype=None)
    assert first.data_ptr() == second.data_ptr()
    first.zero_()
    assert path.read_bytes() == before


def test_an_unpadded_file_is_read_by_copying(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    odd = (length + 1).to_bytes(8, "little") + whole[8 : 8 + length] + b" " + whole[8 + length :]
    (tmp_path / "model.safetensors").write_bytes(odd)
    assert_close(SafetensorsSource(tmp_path).get("a.weight", dtype=None), tensors()["a.weight"], tolerance="exact")


def sharded(folder, *, index=None):
    save_file({"x": torch.ones(2)}, folder / "model-1.safetensors")
    save_file({"y": torch.zeros(3)}, folder / "model-2.safetensors")
    index = index or {"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_read_as_one(tmp_path):
    source = SafetensorsSource(sharded(tmp_path))
    assert source.names() == {"x", "y"}
    assert_close(source.get("y", dtype=None), torch.zeros(3), tolerance="exact")


def test_a_missing_shard_is_named(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors"):
        SafetensorsSource(tmp_path)


def test_an_index_that_names_an_absent_tensor_says_which(tmp_path):
    weight_map = {"x": "model-1.safetensors", "z": "model-1.safetensors"}
    with pytest.raises(CheckpointError, match="the first is z"):
        SafetensorsSource(sharded(tmp_path, index={"weight_map": weight_map}))


@pytest.mark.parametrize("index", [[1], {}, {"weight_map": 3}, {"weight_map": {}}, {"weight_map": {"x": "../x"}}])
def test_a_useless_index_is_refused(tmp_path, index):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        SafetensorsSource(tmp_path)


def test_a_folder_without_weights_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        SafetensorsSource(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="empty file"):
        SafetensorsSource(tmp_path)


def test_an_unknown_name_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a tensor nope, got none"):
        SafetensorsSource(saved(tmp_path)).shape("nope")


def test_float8_and_packed_integers_are_refused_by_name(tmp_path):
    packed = SafetensorsSource(saved(tmp_path, qweight=torch.ones(4, dtype=torch.int32)))
    with pytest.raises(UnsupportedModelError, match="qweight"):
        packed.get("qweight", dtype=torch.float32)
    saved(tmp_path, eight=torch.ones(4, dtype=torch.float8_e4m3fn))
    with pytest.raises(UnsupportedModelError, match=r"eight.*float8"):
        SafetensorsSource(tmp_path)


def test_every_truncation_says_how_many_bytes_are_there(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: expected .*{cut} bytes"):
            SafetensorsSource(path)


def test_bytes_after_the_last_tensor_are_refused(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        SafetensorsSource(path)


def test_a_damaged_header_never_gives_another_kind_of_error(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _, copy in damaged_copies(whole, range(header)):
        path.write_bytes(copy)
        try:
            source = SafetensorsSource(path)
            for name in source.names():
                source.get(name, dtype=torch.float32)
        except LatentKVError:
            refused += 1
    assert refused > header


def test_overlapping_tensors_are_refused(tmp_path):
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(CheckpointError, match="overlap"):
        SafetensorsSource(path)


def tiny_moe():
    config = transformers.DeepseekV3Config(
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        vocab_size=64,
        first_k_dense_replace=1,
    )
    torch.manual_seed(0)
    return transformers.DeepseekV3ForCausalLM(config).eval()


def test_experts_have_one_name_each_however_transformers_saved_them(tmp_path):
    model = tiny_moe()
    model.save_pretrained(tmp_path / "saved")
    saved = SafetensorsSource(tmp_path / "saved")
    # The same model as transformers holds it in memory: all experts of a layer stacked in one tensor.
    (tmp_path / "fused").mkdir()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    save_file(state, tmp_path / "fused" / "model.safetensors")
    fused = SafetensorsSource(tmp_path / "fused")
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in fused.names()
    assert fused.names() == saved.names()
    for name in saved.names():
        assert_close(fused.get(name, dtype=None), saved.get(name, dtype=None), tolerance="exact")
