"""Writes `planning.md`: every number in it is computed here, and every shown command is run."""

from __future__ import annotations

from click.testing import CliRunner

from latentkv.cli.main import main
from latentkv.cli.plan_web import DEFAULT_PORT
from latentkv.planner.catalog import find_model
from latentkv.planner.compare import compare
from latentkv.planner.footprint import code_bits, footprint, row_bytes
from latentkv.planner.layers import attention_name
from latentkv.planner.memory import Deployment, most_users
from latentkv.planner.parallel import Parallel
from latentkv.planner.twins import twins
from latentkv.planner.units import GB, GIB, in_gb_and_gib
from latentkv.planner.web.data import EXAMPLE

V2, V3 = find_model("deepseek-ai/DeepSeek-V2"), find_model("deepseek-ai/DeepSeek-V3")
LLM_67B = find_model("deepseek-ai/deepseek-llm-67b-base")
CONTEXT_TOKENS = 32_768
H200_BYTES = 141 * GB
DEVICES = 8
FORMATS = ("bf16", "fp8", "int8", "int6", "int4")
SMALL_CACHES = (
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V2-Lite",
    "zai-org/GLM-4.7-Flash",
    "openbmb/MiniCPM3-4B",
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B",
    "deepseek-ai/DeepSeek-V3.2",
    "openai/gpt-oss-120b",
    "moonshotai/Kimi-Linear-48B-A3B-Instruct",
)


def planning() -> str:
    """The page, as Markdown."""
    return "\n".join((_token(), _formats(), _headline(), _twins(), _devices(), _hybrids(), _web(), _rules())) + "\n"


def _token() -> str:
    geometry = V2.geometry
    cache = footprint(V2.layers)
    context = cache.sequence_bytes(CONTEXT_TOKENS)
    elements = geometry.row_elements
    apart = f"{100 * (GIB / GB - 1):.0f} %"
    return f"""# Planning memory for MLA

Made by `make docs` from the planner itself: no number on this page is typed in.

## What a token costs
MLA caches one latent and one RoPE key per token and layer, whatever the number of heads. For DeepSeek-V2 that is
{geometry.kv_lora_rank} + {geometry.qk_rope_head_dim} = {elements} elements (the paper's `d_c + d_h^R`; its
`l` is the number of **layers**):

- in bf16 {row_bytes(geometry, "bf16").total:,} bytes per token and layer;
- over {geometry.num_hidden_layers} layers {cache.bytes_per_token:,} bytes per token;
- at {CONTEXT_TOKENS:,} tokens {in_gb_and_gib(context)}. Say which of the two you mean: they differ by {apart}.
"""


def _formats() -> str:
    rows = []
    for format in FORMATS:
        row, cache = row_bytes(V2.geometry, format), footprint(V2.layers, format=format)
        sizes = (row.codes_only, row.wider_parts, row.scales, row.total, cache.bytes_per_token)
        rows.append(f"| `{format}` | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    return "\n".join(
        (
            "## What a format costs",
            "Fewer bits are not the whole story: the RoPE key stays in bf16, and groups of codes share a scale.",
            "DeepSeek-V2, bytes per token and layer, and over all layers:",
            "",
            "| format | all elements in its bits | RoPE kept in bf16 | scales | row | bytes per token |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        )
    )


def _headline() -> str:
    steps = compare(V2, LLM_67B, format="int6").steps
    same, codes, wider, stored = steps
    heads = LLM_67B.geometry.num_key_value_heads
    return f"""## "{100 * codes.smaller:.1f} % smaller"
DeepSeek-V2's paper compares a cache of {code_bits("int6"):g} bits per element with DeepSeek 67B's bf16
cache of {heads} KV heads. Both parts count:

```text
{_shown("plan", "deepseek-ai/DeepSeek-V2", "--format", "int6", "--versus", LLM_67B.name, part="against")}```

With both in bf16 it is {100 * same.smaller:.1f} % ({1 / same.share:.2f} times smaller). Codes alone give
the headline; with RoPE in bf16 it is {100 * wider.smaller:.1f} %, and as stored, scales included,
{100 * stored.smaller:.1f} % ({1 / stored.share:.1f} times).
"""


def _twins() -> str:
    geometry = V2.geometry
    narrow = geometry.v_head_dim
    rows = []
    for twin, wide in zip(twins(geometry, key_dim=narrow), twins(geometry), strict=True):
        ratios = (each.row_elements / geometry.row_elements for each in (twin, wide))
        rows.append(f"| {attention_name(twin)} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    width = twins(geometry)[0].head_dim
    return "\n".join(
        (
            "## Against MHA, GQA and MQA",
            f"The same {geometry.num_attention_heads} heads at equal precision, in multiples of MLA's cache.",
            f"Most comparisons assume keys of {narrow}; V2's are {width} wide with their RoPE part.",
            "",
            f"| attention | keys of {narrow} | keys of {width} |",
            "|---|---|---|",
            *rows,
            "",
        )
    )


def _devices() -> str:
    users = []
    for parallel in (Parallel(tensor=DEVICES), Parallel(data=DEVICES), Parallel(tensor=DEVICES, context=DEVICES)):
        deployment = Deployment(weights="fp8", parallel=parallel)
        fitting = most_users(V3, deployment, memory_bytes=H200_BYTES, context_tokens=CONTEXT_TOKENS)
        users.append(f"{fitting} with {parallel.name}")
    memory = f"{H200_BYTES / GB:g} GB ({H200_BYTES / GIB:.1f} GiB)"
    return f"""## What a device holds
Tensor parallelism splits heads, and a latent has none: **every tensor-parallel rank keeps the whole
cache**. To gain from more devices, split users (DP-attention: each rank keeps attention's weights whole
and serves its own users) or tokens (context parallelism: partial results are merged by their LSE).
DeepSeek-V3 in fp8 on {DEVICES} devices of {memory}: users with {CONTEXT_TOKENS:,} tokens each are {", ".join(users)}.

```text
$ latentkv plan deepseek-ai/DeepSeek-V3 --memory 141GB --weights fp8 --tp 8 --context 32k --users 32 --format bf16
{
        _shown(
            "plan",
            "deepseek-ai/DeepSeek-V3",
            "--memory",
            "141GB",
            "--weights",
            "fp8",
            "--tp",
            "8",
            "--context",
            "32k",
            "--users",
            "32",
            "--format",
            "bf16",
            part="devices",
        )
    }```

The reverse answers (tokens in all, users of a context, context for so many users) are the largest for
which the same sum still fits, so that asking forward with them gives a total that fits, and with one more
a total that does not.
"""


def _hybrids() -> str:
    return f"""## Other models, hybrids included
Layers are counted by kind: windows keep whole pages of the last tokens, linear layers a state that does
not grow, indexers (DeepSeek Sparse Attention) a key of their own beside the latent. What the configuration
does not determine is refused with the reason.

```text
$ latentkv plan {" ".join(name.rpartition("/")[2] for name in SMALL_CACHES)} --context 32k
{_shown("plan", *SMALL_CACHES, "--context", "32k", part="cache of")}```
"""


def _web() -> str:
    return f"""## In the browser
`latentkv plan --web` opens the planner as a page: models, formats, devices, context, users, weights and layout are
chosen there, and tables, plots and notes follow at once. It begins with what the command line asks for, or else with
{" and ".join(f"`{name}`" for name in EXAMPLE["models"])}.

```bash
latentkv plan --web                                     # http://127.0.0.1:{DEFAULT_PORT}/ until Ctrl-C
latentkv plan my/config.json --memory 80GiB --web       # with a model of your own, and these choices
latentkv plan --web --out plan.html                     # the page as one file, which also works from disk
```

The page is one file, with all models of the catalogue and all devices of a fixed memory in it. It fetches nothing and
sends nothing: the server answers on 127.0.0.1 alone, and the page forbids itself any connection.
"Copy link" puts all choices into the address behind `#`, "Copy as JSON" gives the answers under `--json`'s names.
Bytes of rows come from `cache/layout.py` when the page is made; what its script adds up is compared with the Python
API, to the byte, for every model of the catalogue in every format. Models that are refused are listed with the reason.
"""


def _rules() -> str:
    return """## What is exact and what is not
- **Exact:** rows, pages, sequences. A test compares them, byte for byte, with caches that this engine
  allocates in every format and with what transformers holds for DeepSeek-V2, V3, MiniCPM3, Llama, Qwen3 and Mistral.
- **An estimate:** weights from a number of parameters (every one in the format asked for; `--weights
  stored` or a size is better), and what a step needs besides (`--activations` states a measured figure).
  The formulas are in `src/latentkv/planner/activations.py` and `weights.py`; `--explain` shows a plan's own.
- **Not counted:** the driver, the allocator's slack, other programs. `--reserve 2GiB` keeps room for them.

`--json` and `--csv` have every number with its unit in its name; `--plot plan.svg` draws cache and users
against context;
`latentkv catalog add config.json` adds a model of your own."""


def _shown(*arguments: str, part: str) -> str:
    """What the command prints, from the paragraph that contains `part` in its first line to the end of its table."""
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    paragraphs = result.stdout.split("\n\n")
    start = next(index for index, text in enumerate(paragraphs) if part in text.strip().split("\n")[0])
    table = [start + 1, start + 2] if paragraphs[start + 2].startswith("  DP-") else [start + 1]
    return "\n\n".join(paragraphs[index].strip("\n") for index in (start, *table)) + "\n"
