"""MInference's own vertical-slash attention, the peer of winnow's attention over lines; run by scripts/gpu_check.

  python3 bench/minference_peer.py '{"rows": 131072, "heads": 32, "kv": 8, "dim": 128, "minference": "PATH",
                                     "verticals": 1000, "slashes": 6096, "runs": 48}'

PATH is a checkout of github.com/microsoft/MInference, of which csrc/vertical_slash_index.cu and
minference/ops/pit_sparse_flash_attention_v2.py are used as they are, the first without its torch part; compiled by nvcc
into PATH/lines.so where that is not there yet. bf16, causal. Keys and values are repeated for each query head beforehand.

Times, the fastest by CUDA events, of all heads of one layer:
  estimate_ms   the choice of the lines as in minference/modules/minference_forward.py, but for all heads at once
  convert_ms    its index of blocks and columns, lines sorted before
  kernel_ms     its Triton kernel over the drawn lines of src/attention/drawn_lines.h: the same mask as winnow's
  by_head_ms    choice, index and kernel head by head, as its forward does, over the lines it found
Before, "check": the largest difference from dense attention under the mask of the same lines, at 4096 rows.
"""
import ctypes
import importlib
import json
import math
import pathlib
import re
import subprocess
import sys
import types

import torch

from gpu_peers import fastest_ms

BLOCK = 64
PROBE = 64
MASK64 = (1 << 64) - 1


def next_random(state):
    """splitmix64, as src/base/random.h. -> (number, state)"""
    state = (state + 0x9E3779B97F4A7C15) & MASK64
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31), state


def draw_lines(task, head):
    """Columns ascending and distances descending of one head: draw_lines of src/attention/drawn_lines.cpp."""
    rows, state = task["rows"], head
    n_column, n_distance = min(task["verticals"], rows), min(task["slashes"], rows)
    columns, distances = set(range(min(30, n_column))), set()
    while len(columns) < n_column:
        number, state = next_random(state)
        columns.add(number % rows)
    length, begin = -(-task["slashes"] // task["runs"]), 0
    while True:
        for at in range(begin, min(begin + length, rows)):
            if len(distances) < n_distance:
                distances.add(at)
        if len(distances) == n_distance:
            return sorted(columns), sorted(distances, reverse=True)
        number, state = next_random(state)
        begin = number % rows


def compile_converter(folder):
    """Their converter's kernel and launcher as a plain library: the text up to where torch's types begin."""
    library = folder / "lines.so"
    if not library.exists():
        text = (folder / "csrc" / "vertical_slash_index.cu").read_text()
        body = text[text.index("__device__ void save_blocks"):text.index("std::vector<at::Tensor>")]
        body = re.sub(r"^void convert_vertical_slash_indexes_64x64", 'extern "C" \\g<0>', body, flags=re.M)
        source = folder / "lines.cu"
        source.write_text(body)
        subprocess.run(["nvcc", "-O3", "-arch=sm_90", "-shared", "-Xcompiler", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


def load(folder):
    """Their module of the Triton kernel, with the converter that it imports from an extension. -> module"""
    library = compile_converter(folder)

    def convert_vertical_slash_indexes(seqlens, vertical, slash, context, block_m, block_n):
        assert block_m == BLOCK and block_n == BLOCK
        batch, heads, n_slash = slash.shape
        n_vertical, n_rows = vertical.shape[2], (context + block_m - 1) // block_m
        make = lambda *shape: torch.zeros(batch, heads, n_rows, *shape, dtype=torch.int32, device=seqlens.device)
        made = make(), make(n_slash), make(), make(n_vertical)
        # The launcher takes the default stream, as torch does here.
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (seqlens, vertical, slash, *made)]
        library.convert_vertical_slash_indexes_64x64(*pointers, batch, heads, n_rows, n_vertical, n_slash)
        return made

    for name, path in (("minference", "minference"), ("minference.ops", "minference/ops"), ("minference.cuda", None)):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / path)] if path else []
        sys.modules[name] = package
    sys.modules["minference.cuda"].convert_vertical_slash_indexes = convert_vertical_slash_indexes
    return importlib.import_module("minference.ops.pit_sparse_flash_attention_v2")


def tensors(task):
    """q, k, v [1, heads, rows, dim]. Keys are alike in blocks of 64, as winnow's, so that diagonals come in clusters."""
    torch.manual_seed(1)
    make = lambda heads, rows: torch.randn(1, heads, rows, task["dim"], device="cuda", dtype=torch.bfloat16)
    group = task["heads"] // task["kv"]
    q, v = make(task["heads"], task["rows"]), make(task["kv"], task["rows"])
    k = make(task["kv"], task["rows"] // BLOCK).repeat_interleave(BLOCK, dim=2)
    return q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)


def drawn(task):
    """Lines of all heads, sorted as their converter wants them. -> int32 [1, heads, verticals], [1, heads, slashes]"""
    lines = [draw_lines(task, head) for head in range(task["heads"])]
    as_tensor = lambda part: torch.tensor([line[part] for line in lines], dtype=torch.int32, device="cuda")[None]
    return as_tensor(0), as_tensor(1)


def estimate(q, k, verticals, slashes):
    """The lines that minference_forward.py chooses by its last rows' attention, for any number of heads at once."""
    rows = q.shape[2]
    probe = min(PROBE, rows)
    logits = q[:, :, -probe:] @ k.mT / math.sqrt(q.shape[-1])
    ahead = torch.ones(probe, probe, dtype=torch.bool, device=q.device).triu(1)
    logits[..., -probe:].masked_fill_(ahead, -torch.inf)
    mass = torch.softmax(logits, dim=-1, dtype=torch.float32)
    of_columns, of_distances = mass.sum(-2, keepdim=True), sums_of_diagonals(mass)[..., :rows]
    of_columns[..., :30] = torch.inf
    of_distances[..., -100:] = torch.inf
    chosen = of_columns.topk(min(verticals, rows), -1).indices
    return chosen, rows - 1 - of_distances.topk(min(slashes, rows), -1).indices


def sums_of_diagonals(matrix):
    """[batch, heads, n, m] -> [batch, heads, n + m - 1] from the lowest left one on. A row lies between n zeros on either
    side; read with a stride of one value more than it has, each row is moved to the left by one against that before."""
    n, m = matrix.shape[-2:]
    padded = torch.nn.functional.pad(matrix, (n, n))
    moved = padded.as_strided((*matrix.shape[:2], n, n + m), (*padded.stride()[:2], 2 * n + m + 1, 1))
    return moved.sum(2)[:, :, 1:]


def converted(module, rows, vertical, slash):
    seqlens = torch.tensor([rows], dtype=torch.int32, device="cuda")
    return seqlens, module.convert_vertical_slash_indexes(seqlens, vertical, slash, rows, BLOCK, BLOCK)


def attend(module, q, k, v, seqlens, lists):
    return module._triton_mixed_sparse_attention(q, k, v, seqlens, *lists, q.shape[-1] ** -0.5)


def pairs(rows, lists):
    """Computed (row, slot) pairs below the diagonal, over all heads."""
    block_count, block_offset, column_count, _ = lists
    most = int(block_count.max())
    start = torch.arange(0, rows, BLOCK, device="cuda")[None, None, :, None]
    inside = torch.arange(most, device="cuda") < block_count[..., None]
    ahead = start - block_offset[..., :most]  # of the block's first row before its first slot
    total = int(column_count.sum()) * BLOCK
    for row in range(BLOCK):
        total += int(((ahead + row + 1).clamp(0, BLOCK) * inside).sum())
    return total


def check(module, task):
    """Their kernel against dense attention in float32 under the same mask, which holds all lines. -> difference"""
    small = {**task, "rows": 4096, "heads": 4, "kv": 1, "verticals": 100, "slashes": 300, "runs": 4}
    rows = small["rows"]
    q, k, v = tensors(small)
    vertical, slash = drawn(small)
    seqlens, lists = converted(module, rows, vertical, slash)
    out = attend(module, q, k, v, seqlens, lists).float()
    causal = torch.ones(rows, rows, dtype=torch.bool, device="cuda").tril()
    at = torch.arange(rows, device="cuda")
    worst = 0.0
    for head in range(small["heads"]):
        mask = torch.zeros_like(causal)
        for block, (n_block, offsets, n_column, columns) in enumerate(zip(*(part[0, head].tolist() for part in lists))):
            tile = mask[block * BLOCK:(block + 1) * BLOCK]
            for begin in offsets[:n_block]:
                tile[:, begin:begin + BLOCK] = True
            tile[:, torch.tensor(columns[:n_column], dtype=torch.long, device="cuda")] = True
        mask &= causal
        lines = torch.isin(at[:, None] - at[None], slash[0, head].long())
        lines[:, vertical[0, head].long()] = True
        assert not (lines & causal & ~mask).any(), "their index leaves lines out"
        dense = torch.nn.functional.scaled_dot_product_attention(
            q[:, head].float(), k[:, head].float(), v[:, head].float(), attn_mask=mask)
        worst = max(worst, (dense - out[:, head]).abs().max().item())
    return worst


def by_head(module, task, q, k, v):
    """What minference_forward does for a layer."""
    rows, out = task["rows"], torch.empty_like(q)
    for head in range(task["heads"]):
        part = [x[:, head:head + 1] for x in (q, k, v)]
        vertical, slash = estimate(part[0], part[1], task["verticals"], task["slashes"])
        out[:, head:head + 1] = module.vertical_slash_sparse_attention(*part, vertical, slash)
    return out


def measure(task, result):
    """Fills `result` as far as it gets."""
    module = load(pathlib.Path(task["minference"]).resolve())
    rows = task["rows"]
    result["check"] = check(module, task)
    q, k, v = tensors(task)
    result["estimate_ms"] = fastest_ms(lambda: estimate(q, k, task["verticals"], task["slashes"]))
    torch.cuda.empty_cache()
    result["by_head_ms"] = fastest_ms(lambda: by_head(module, task, q, k, v))
    torch.cuda.empty_cache()
    vertical, slash = drawn(task)
    result["convert_ms"] = fastest_ms(lambda: converted(module, rows, vertical, slash))
    seqlens, lists = converted(module, rows, vertical, slash)
    result["density"] = pairs(rows, lists) / (task["heads"] * rows * (rows + 1) / 2)
    result["kernel_ms"] = fastest_ms(lambda: attend(module, q, k, v, seqlens, lists))


if __name__ == "__main__":
    times = {}
    try:
        measure(json.loads(sys.argv[1]), times)
    except RuntimeError as reason:  # of too little memory, or of an address that is none
        times["refused"] = str(reason).splitlines()[0]
    print(json.dumps(times))
