"""Dense and block-sparse attention of PyTorch, the peers of winnow's CUDA kernels; run by scripts/gpu_check.

  python3 bench/gpu_peers.py '{"rows": 131072, "heads": 32, "kv": 8, "dim": 128, "density": 0.1}'

bf16, causal. density 1: scaled_dot_product_attention by cuDNN and by FlashAttention-2. Below 1: flex_attention with a
block mask of 128 x 128: the diagonal, the first block and as many others, drawn for each head and query block, as make
the density. Prints one JSON object: milliseconds (the fastest by CUDA events, as winnow bench attend counts) and TFLOP/s on computed (row, slot) pairs.
"""
import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BLOCK = 128


def fastest_ms(call, seconds=1.0):
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    times = []
    while sum(times) < 1000 * seconds or len(times) < 3:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times)  # as winnow bench attend counts


def tensors(task):
    torch.manual_seed(1)
    make = lambda heads: torch.randn(1, heads, task["rows"], task["dim"], device="cuda", dtype=torch.bfloat16)
    return make(task["heads"]), make(task["kv"]), make(task["kv"])


def dense(task):
    q, k, v = tensors(task)
    rows = task["rows"]
    flop = 4 * task["dim"] * task["heads"] * rows * (rows + 1) / 2
    result = {}
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash_attention_2", SDPBackend.FLASH_ATTENTION)):
        def call():
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        try:
            ms = fastest_ms(call)
            result[name] = {"ms": ms, "tflops": flop / ms / 1e9}
        except RuntimeError as reason:
            result[name] = {"refused": str(reason).splitlines()[0]}
    return result


def block_mask(task):
    """[heads, blocks, blocks] of the blocks to compute, and how many pairs they hold."""
    n = task["rows"] // BLOCK
    generator = torch.Generator(device="cuda").manual_seed(2)
    scores = torch.rand(task["heads"], n, n, device="cuda", generator=generator)
    row = torch.arange(n, device="cuda")
    scores.masked_fill_(row[None, :, None] < row[None, None, :], -1)
    scores[:, :, 0] = 2
    scores[:, row, row] = 3
    budget = torch.clamp((task["density"] * (row + 1)).ceil().long(), min=2)
    rank = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
    mask = (rank < budget[None, :, None]) & (scores >= 0)
    pairs = mask.sum().item() * BLOCK * BLOCK - task["heads"] * n * BLOCK * (BLOCK - 1) / 2
    return mask, pairs


def sparse(task):
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    q, k, v = tensors(task)
    mask, pairs = block_mask(task)
    on_diagonal = torch.zeros_like(mask)
    index = torch.arange(mask.shape[-1], device="cuda")
    on_diagonal[:, index, index] = True

    def lists(blocks):
        count = blocks.sum(-1).to(torch.int32)
        order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
        return count[None], order[None]

    def causal(_b, _h, q_at, k_at):
        return q_at >= k_at

    partial_n, partial_at = lists(mask & on_diagonal)
    full_n, full_at = lists(mask & ~on_diagonal)
    blocks = BlockMask.from_kv_blocks(partial_n, partial_at, full_n, full_at, BLOCK_SIZE=BLOCK, mask_mod=causal)
    compiled = torch.compile(flex_attention)
    ms = fastest_ms(lambda: compiled(q, k, v, block_mask=blocks, enable_gqa=True))
    return {"flex_attention": {"ms": ms, "tflops": 4 * task["dim"] * pairs / ms / 1e9,
                               "density": pairs / (task["heads"] * task["rows"] * (task["rows"] + 1) / 2)}}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps((dense if job.get("density", 1) >= 1 else sparse)(job)))
