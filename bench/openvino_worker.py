"""One OpenVINO measurement for bench/peers, run by the Python of the environment that OpenVINO is installed in.

  echo '{"model": "x.gguf", "threads": 2, "mode": "dense", "prompt": 2048, "gen": 0, "reps": 1, "ids": []}' |
      python openvino_worker.py

mode: dense, xattention or trishape. With "prompts", a list of {"ids": [...], "n_gen": N}, each is answered by the
likeliest tokens until the model ends or N are there, and a line is printed for each: its text, its number of tokens and
the seconds until the first one. Otherwise it is timed. The prompt: ids, or where there are none random ones, as llama-bench takes them; the
first run after loading warms up and is not counted. Prints one JSON object: prefill_tok_s and, where gen > 1, decode_tok_s, each a list over reps.
"""
import json
import random
import sys

import numpy
import openvino
import openvino_genai

VOCABULARY = 30000  # ids below this are plain text in every model we use


def scheduler(mode, n_tokens):
    """Scheduler settings of `mode`: one batch takes the whole prompt, as the pipeline's own default does."""
    config = openvino_genai.SchedulerConfig()
    config.max_num_batched_tokens = 1 << 20 if mode == "dense" else 4096  # sparse prefill works chunk by chunk
    config.cache_size = 0  # grows as needed
    config.enable_prefix_caching = False
    if mode == "dense":
        return config
    sparse = openvino_genai.SparseAttentionConfig()
    sparse.mode = getattr(openvino_genai.SparseAttentionMode, mode.upper())
    if mode == "xattention":
        sparse.xattention_threshold = 0.9
    config.use_sparse_attention = True
    config.sparse_attention_config = sparse
    return config


def inputs_of(ids):
    ids = numpy.array([ids], dtype=numpy.int64)
    return openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))


def answer(pipe, prompts):
    settings = pipe.get_generation_config()
    settings.do_sample = False
    settings.ignore_eos = False
    pipe.generate(inputs_of(prompts[0]["ids"][:64]), settings, max_new_tokens=1)
    for prompt in prompts:
        settings.max_new_tokens = prompt["n_gen"]
        found = pipe.generate(inputs_of(prompt["ids"]), settings)
        print(json.dumps({"answer": pipe.get_tokenizer().decode(found.tokens[0]), "n_gen": len(found.tokens[0]),
                          "ttft_s": found.perf_metrics.get_ttft().mean / 1000}), flush=True)


def main():
    task = json.load(sys.stdin)
    if "prompts" in task:
        longest = max(len(prompt["ids"]) for prompt in task["prompts"])
        answer(openvino_genai.LLMPipeline(task["model"], "CPU", scheduler_config=scheduler(task["mode"], longest),
                                          INFERENCE_NUM_THREADS=task["threads"]), task["prompts"])
        return
    pipe = openvino_genai.LLMPipeline(task["model"], "CPU", scheduler_config=scheduler(task["mode"], task["prompt"]),
                                      INFERENCE_NUM_THREADS=task["threads"])
    settings = openvino_genai.GenerationConfig()
    settings.do_sample = False
    settings.ignore_eos = True
    settings.max_new_tokens = max(1, task["gen"])
    dice = random.Random(1)

    def generate(n_tokens, chosen=()):
        ids = chosen or [dice.randrange(VOCABULARY) for _ in range(n_tokens)]
        return pipe.generate(inputs_of(ids), settings).perf_metrics

    generate(64)
    prefill, decode = [], []
    for _ in range(task["reps"]):
        metrics = generate(task["prompt"], task["ids"])
        prefill.append(task["prompt"] / (metrics.get_ttft().mean / 1000))
        if task["gen"] > 1:
            decode.append(1000 / metrics.get_tpot().mean)
    print(json.dumps({"prefill_tok_s": prefill, "decode_tok_s": decode, "version": openvino_genai.__version__}))


if __name__ == "__main__":
    main()
