"""One attention call and two results for it, in a file that any machine can run again (`latentkv replay`).

A safetensors file. It holds what the call reads and nothing else: the pages of its sequences, numbered anew, with zeros
where no token of theirs lies. Rows are what the model made of somebody's text: treat the file as that text.

    query        [T, H, width]                       rows   [pages, page_tokens, storage_elements]
    query_lens, context_lens  [B] int64              table  [B, max_pages] int64
    w_uk, w_uv   where the call has an up-projection
    out.0, lse.0 the result that was used            out.1, lse.1  the shadow's

and under the metadata key "latentkv" a JSON object: version of the file, request, scale, causal, names and paths of
both backends, errors, versions, instruction sets.
"""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentkv.backends.agreement import Agreement
from latentkv.backends.base import Attended, Request
from latentkv.backends.call import Call
from latentkv.backends.isa import active_isa, available_isas, cpu_flags
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.cache.layout import RowLayout, kv_row, mla_row
from latentkv.errors import CheckpointError, LatentKVError, OptionError, sentence
from latentkv.ops.absorb import UpProjection

FILE_VERSION = 1
METADATA_KEY = "latentkv"
MIB = 1 << 20


@dataclass(frozen=True)
class Dump:
    """What a file holds. results: (backend's name, result) of the one that was used and of the shadow."""

    call: Call
    results: tuple[tuple[str, Attended], tuple[str, Attended]]
    about: Mapping[str, Any]


class DumpFolder:
    """Writes files into `folder`, at most `max_files` and, together, `max_bytes`; then no more until it is emptied.

    A call that would take more than `max_bytes` / 4 is written with the sequence of the worst error alone.
    """

    def __init__(self, folder: str | Path, *, max_files: int = 16, max_bytes: int = 256 * MIB) -> None:
        if max_files < 1 or max_bytes < 1:
            got = f"{max_files} and {max_bytes}"
            raise OptionError(sentence("max_files and max_bytes", expected="1 or more", got=got))
        self.folder = Path(folder)
        self.max_files = max_files
        self.max_bytes = max_bytes
        self._lock = threading.Lock()

    def write(
        self, call: Call, used: tuple[str, Attended], shadow: tuple[str, Attended], agreement: Agreement
    ) -> Path | None:
        """The file written, or None where the folder is full. Raises OSError when it cannot be written."""
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            files = sorted(self.folder.glob("mismatch-*.safetensors"))
            room = self.max_bytes - sum(file.stat().st_size for file in files)
            if len(files) >= self.max_files:
                return None
            tensors = _tensors(call, used[1], shadow[1], range(call.batch.num_sequences))
            reduced = _size_bytes(tensors) > self.max_bytes // 4
            if reduced:
                tensors = _tensors(call, used[1], shadow[1], [_sequence_of(call.batch, agreement.worst[0])])
            if _size_bytes(tensors) > room:
                return None
            about = _about(call, used, shadow, agreement) | {"one_sequence_of_several": reduced}
            path = self.folder / f"mismatch-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09d}.safetensors"
            save_file(tensors, str(path), metadata={METADATA_KEY: json.dumps(about)})
            return path


def read_dump(path: str | Path) -> Dump:
    """The call and the results in a file. Raises CheckpointError for a file that is no such dump or is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        if about["file_version"] != FILE_VERSION:
            raise CheckpointError(f"{path}: a dump of version {about['file_version']}, this reads {FILE_VERSION}.")
        return _rebuilt(tensors, about)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, LatentKVError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: not a dump of an attention call, or a damaged one ({why}).") from error


def _rebuilt(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Dump:
    request = Request(**about["request"])
    row = _row(request)
    rows, counts = tensors["rows"], -(-tensors["context_lens"] // request.page_tokens)
    if rows.shape[1:] != (request.page_tokens, row.storage_elements):
        expected = f"[pages, {request.page_tokens}, {row.storage_elements}]"
        raise CheckpointError(sentence("rows", expected=expected, got=list(rows.shape)))
    pages = [table[:count] for table, count in zip(tensors["table"].tolist(), counts.tolist(), strict=True)]
    if any(not 0 <= page < len(rows) for table in pages for page in table):
        raise CheckpointError(sentence("table", expected=f"pages below {len(rows)}", got="others"))
    batch = Batch.build(
        query_lens=tensors["query_lens"].tolist(),
        context_lens=tensors["context_lens"].tolist(),
        pages=pages,
        page_tokens=request.page_tokens,
    )
    _check_shapes(request, batch.num_tokens, tensors)
    up = UpProjection(tensors["w_uk"], tensors["w_uv"]) if request.kind == "mla" else None
    call = Call(
        request, tensors["query"], LayerCache(rows, row), batch, float(about["scale"]), up, bool(about["causal"])
    )
    used, shadow = (
        (who["name"], Attended(tensors[f"out.{index}"], tensors[f"lse.{index}"], who["path"]))
        for index, who in enumerate(about["results"])
    )
    return Dump(call, (used, shadow), about)


def _check_shapes(request: Request, tokens: int, tensors: Mapping[str, Tensor]) -> None:
    """Kernels trust their arguments: raise CheckpointError unless these are what the request says."""
    heads, latent, nope, value = (
        request.num_heads,
        request.kv_lora_rank,
        request.qk_nope_head_dim,
        request.v_head_dim,
    )
    rope = request.qk_rope_head_dim // request.rope_groups
    width = {"mla": nope + rope, "absorbed": latent + rope, "kv": request.head_dim}[request.kind]
    shapes: dict[str, tuple[int, ...]] = {"query": (tokens, heads, width)}
    for index in range(2):
        shapes[f"out.{index}"] = (tokens, heads, latent if request.kind == "absorbed" else value)
        shapes[f"lse.{index}"] = (tokens, heads)
    if request.kind == "mla":
        shapes |= {"w_uk": (heads, nope, latent), "w_uv": (heads, value, latent)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise CheckpointError(sentence(name, expected=list(shape), got=list(tensors[name].shape)))
    if str(tensors["query"].dtype) != f"torch.{request.query_dtype}":
        raise CheckpointError(sentence("query dtype", expected=request.query_dtype, got=tensors["query"].dtype))


def _row(request: Request) -> RowLayout:
    if request.kind == "kv":
        return kv_row(
            request.format,
            num_key_value_heads=request.num_key_value_heads,
            head_dim=request.head_dim,
            v_head_dim=request.v_head_dim,
        )
    return mla_row(request.format, kv_lora_rank=request.kv_lora_rank, qk_rope_head_dim=request.qk_rope_head_dim)


def _tensors(call: Call, used: Attended, shadow: Attended, sequences: range | list[int]) -> dict[str, Tensor]:
    """What the file holds of these sequences; copies, all contiguous."""
    batch, size = call.batch, call.batch.page_tokens
    lengths = [batch.lengths[index] for index in sequences]
    counts = [-(-context // size) for _, context in lengths]
    rows = torch.zeros(sum(counts), *call.cache.rows.shape[1:], dtype=call.cache.rows.dtype)
    table = torch.zeros(len(counts), max(counts, default=0), dtype=torch.int64)
    flat, first = rows.view(-1, rows.shape[-1]), 0
    for place, (index, (_, context), count) in enumerate(zip(sequences, lengths, counts, strict=True)):
        pages = batch.page_table[index, :count].long().to(call.cache.rows.device)
        flat[first * size : first * size + context] = call.cache.rows[pages].flatten(0, 1)[:context].cpu()
        table[place, :count] = torch.arange(first, first + count)
        first += count
    chosen = _tokens(batch, sequences)
    tensors = {
        "query": call.query[chosen],
        "query_lens": torch.tensor([query for query, _ in lengths], dtype=torch.int64),
        "context_lens": torch.tensor([context for _, context in lengths], dtype=torch.int64),
        "rows": rows,
        "table": table,
    }
    if call.up is not None:
        tensors |= {"w_uk": call.up.w_uk, "w_uv": call.up.w_uv}
    for index, result in enumerate((used, shadow)):
        tensors |= {f"out.{index}": result.out[chosen], f"lse.{index}": result.lse[chosen]}
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _tokens(batch: Batch, sequences: range | list[int]) -> Tensor:
    start = batch.query_start.tolist()
    return torch.tensor([token for index in sequences for token in range(start[index], start[index + 1])])


def _sequence_of(batch: Batch, token: int) -> int:
    return bisect_right(batch.query_start.tolist(), token) - 1


def _size_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _about(
    call: Call, used: tuple[str, Attended], shadow: tuple[str, Attended], agreement: Agreement
) -> dict[str, object]:
    import latentkv

    return {
        "file_version": FILE_VERSION,
        "request": asdict(call.request),
        "scale": call.scale,
        "causal": call.causal,
        "results": [{"name": name, "path": result.path} for name, result in (used, shadow)],
        "agreement": asdict(agreement),
        "latentkv": latentkv.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "isa": active_isa(),
        "available_isas": list(available_isas()),
        "cpu_flags": list(cpu_flags()),
    }
