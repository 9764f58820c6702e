"""llama.cpp generating on request: run with the Python of an environment that has llama-cpp-python.

Arguments: the GGUF file, threads, the longest context. Reads one JSON object per line: {"prompt": [token ids],
"tokens": to decode}. Answers one per line: {"prefill": seconds, "decode": seconds}. Knows nothing of latentkv.
"""

from __future__ import annotations

import json
import sys
import time

from llama_cpp import Llama


def run(llm: Llama, prompt: list[int], tokens: int) -> dict[str, float]:
    """A prompt without a cache, then greedy tokens one by one."""
    llm.reset()
    begin = time.perf_counter()
    llm.eval(prompt)
    token = llm.sample(temp=0.0)
    middle = time.perf_counter()
    for _ in range(tokens):
        llm.eval([token])
        token = llm.sample(temp=0.0)
    return {"prefill": middle - begin, "decode": time.perf_counter() - middle}


def main() -> None:
    """Answer until the input ends."""
    path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    llm = Llama(path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(llm, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
