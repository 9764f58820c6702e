import gguf
import numpy as np
import pytest
import torch
import transformers

from latentkv.errors import CheckpointError, LatentKVError, UnsupportedModelError
from latentkv.models.gguf_config import config_from_gguf
from latentkv.models.locate import find_model
from latentkv.models.tokenizer import Tokenizer
from latentkv.models.weights import GGUFFile, GGUFSource, SafetensorsSource
from support.compare import assert_close
from support.tiny_gguf import byte_level_tokenizer, damaged_copies, from_hf, write_gguf

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 48,
}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}
EXPERTS = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
FAMILIES = {
    "deepseek2": ("DeepseekV3", SIZES | LATENT | EXPERTS),
    "minicpm3": ("MiniCPM3", SIZES | LATENT | {"pad_token_id": None}),
    "qwen3": ("Qwen3", SIZES | {"num_key_value_heads": 2, "head_dim": 16}),
    "qwen2": ("Qwen2", SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
}


def saved(folder, architecture):
    prefix, fields = FAMILIES[architecture]
    torch.manual_seed(3)
    config = getattr(transformers, f"{prefix}Config")(**fields)
    getattr(transformers, f"{prefix}ForCausalLM")(config).save_pretrained(folder)
    return SafetensorsSource(folder)


@pytest.mark.parametrize("split_kv_b", [False, True])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_converted_model_has_the_names_and_values_of_the_original(tmp_path, architecture, split_kv_b):
    original = saved(tmp_path, architecture)
    tensors = {name: original.get(name, dtype=torch.float32) for name in original.names()}
    arrays = from_hf(tensors, heads=4, nope=12, split_kv_b=split_kv_b)
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", architecture=architecture, tensors=arrays))
    assert source.names() == original.names()
    for name, tensor in tensors.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert_close(source.get(name, dtype=torch.float32), tensor, tolerance="exact")


def test_the_whole_kv_b_wins_over_its_halves(tmp_path):
    arrays = {
        "blk.0.attn_kv_b.weight": np.ones((4, 2), np.float32),
        "blk.0.attn_k_b.weight": np.ones((2, 2, 1), np.float32),
        "blk.0.attn_v_b.weight": np.ones((2, 1, 2), np.float32),
    }
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", architecture="deepseek2", tensors=arrays))
    assert source.names() == {"model.layers.0.self_attn.kv_b_proj.weight"}


@pytest.mark.parametrize("values", [None, np.ones((2, 1, 3), np.float32)])
def test_halves_that_do_not_fit_are_refused(tmp_path, values):
    arrays = {"blk.0.attn_k_b.weight": np.ones((2, 2, 1), np.float32)}
    if values is not None:
        arrays["blk.0.attn_v_b.weight"] = values
    with pytest.raises(CheckpointError, match="attn_k_b"):
        GGUFSource(write_gguf(tmp_path / "m.gguf", architecture="deepseek2", tensors=arrays))


WRITABLE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "MXFP4"]


@pytest.mark.parametrize("kind", WRITABLE)
def test_quantised_tensors_and_single_experts_are_decoded(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    stack = np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32)
    packed = gguf.quants.quantize(stack, kind)
    expected = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
    arrays = {"blk.0.ffn_up_exps.weight": stack, "token_embd.weight": stack[0]}
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", tensors=arrays, quantised=kind))
    assert_close(source.get("model.embed_tokens.weight", dtype=torch.float32), expected[0], tolerance="exact")
    expert = source.get("model.layers.0.mlp.experts.2.up_proj.weight", dtype=torch.float32)
    assert_close(expert, expected[2], tolerance="exact")
    half = source.get("model.embed_tokens.weight", dtype=torch.bfloat16)
    assert_close(half, expected[0].bfloat16(), tolerance="exact")


@pytest.mark.parametrize(
    "kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS", "IQ3_S", "IQ1_S", "TQ1_0"]
)
def test_quantisations_that_python_cannot_write_are_decoded_from_raw_bytes(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    columns, row_bytes = 512, 512 // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1]
    packed = np.random.default_rng(1).integers(0, 60, (4, row_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("output.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFSource(tmp_path / "m.gguf")
    assert source.shape("lm_head.weight") == (4, columns)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
    assert_close(source.get("lm_head.weight", dtype=None), expected, tolerance="exact")


def test_a_quantisation_without_a_decoder_is_refused_by_name(tmp_path):
    packed = np.zeros((1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_K][1]), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("output.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight.*Q8_K"):
        GGUFSource(tmp_path / "m.gguf").get("lm_head.weight", dtype=torch.float32)


def test_float_tensors_are_views_of_the_file(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tensors={"output.weight": np.ones((2, 4), np.float16)})
    source = GGUFSource(path)
    first, second = (source.get("lm_head.weight", dtype=torch.float16) for _ in range(2))
    assert first.data_ptr() == second.data_ptr()


def test_unknown_tensors_keep_their_names_and_frequencies_are_no_weights(tmp_path):
    arrays = {name: np.ones(4, np.float32) for name in ("blk.0.new_thing.weight", "rope_freqs.weight", "odd")}
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", tensors=arrays))
    assert source.names() == {"blk.0.new_thing.weight", "odd"}
    with pytest.raises(CheckpointError, match="expected a tensor x, got none"):
        source.get("x", dtype=None)


def test_other_architectures_are_refused_with_the_list(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", architecture="qwen2moe")
    with pytest.raises(UnsupportedModelError, match=r"one of llama, qwen2, .*got 'qwen2moe'"):
        GGUFSource(path)


def test_one_part_of_a_split_file_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"one of 3 parts.*merge"):
        GGUFFile(tmp_path / "m.gguf")


def complete(path):
    fields = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 8,
        "feed_forward_length": 16,
        "attention.head_count": 2,
        "rope.freq_base": 500.0,
    }
    arrays = {"token_embd.weight": np.ones((10, 8), np.float32), "blk.0.ffn_up.weight": np.ones((16, 8), np.float16)}
    return write_gguf(path, fields=fields, tensors=arrays, tokenizer=byte_level_tokenizer())


def use(path):
    """Everything the product does with a GGUF file before the first token."""
    file = GGUFFile(path)
    source = GGUFSource(file)
    config_from_gguf(file)
    for name in source.names():
        source.get(name, dtype=torch.float32)
    tokenizer = Tokenizer.from_gguf(file)
    tokenizer.decode(tokenizer.encode("ab c"))


def test_the_undamaged_file_is_usable(tmp_path):
    use(complete(tmp_path / "m.gguf"))


def test_every_truncation_is_a_checkpoint_error_with_byte_counts(tmp_path):
    path = complete(tmp_path / "m.gguf")
    whole = path.read_bytes()
    end = max(tensor.offset_bytes + tensor.size_bytes for tensor in GGUFFile(path).tensors.values())
    for cut in range(1, end):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=rf"m\.gguf: expected .*({cut} bytes|bytes left)"):
            use(path)


def test_damaged_headers_never_give_another_kind_of_error_or_hang(tmp_path):
    path = complete(tmp_path / "m.gguf")
    whole = path.read_bytes()
    header = min(tensor.offset_bytes for tensor in GGUFFile(path).tensors.values())
    refused = 0
    for what, copy in damaged_copies(whole, range(header)):
        path.write_bytes(copy)
        try:
            use(path)
        except LatentKVError:
            refused += 1
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
    assert refused > header // 2


@pytest.mark.model
def test_the_real_model_has_the_shapes_of_its_configuration():
    file = GGUFFile(find_model().path)
    source = GGUFSource(file)
    config = config_from_gguf(file)
    assert source.shape("model.embed_tokens.weight") == (config["vocab_size"], config["hidden_size"])
    assert source.shape("model.layers.29.self_attn.k_proj.weight") == (3 * 64, 576)
    assert source.shape("model.layers.0.mlp.down_proj.weight") == (576, 1536)
    assert "lm_head.weight" not in source.names()
    query = source.get("model.layers.0.self_attn.q_proj.weight", dtype=torch.float32)
    assert query.shape == (576, 576)
    assert 0.01 < query.std() < 1.0
    assert len(source.names()) == 30 * 9 + 2
