"""Denoises the same shape, prompt and steps with PyTorch + transformers and with `unmask bench`, in turns.

Usage: peer_torch.py --unmask BINARY [--config FILE] [--prompt N] [--gap N] [--steps N] [--rounds N]

The sampler is that of the plan which `unmask` follows for the config by default (dllm's MDLMSampler): every
step computes the logits of the canvas, takes the most probable token of each masked slot, and commits the most
confident ones, as many as the linear schedule asks for. Weights are random on both sides; neither time nor
memory depends on them. Each side runs in a process of its own; of several rounds the best step time counts,
since other work on the machine only ever adds to it.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unmask", help="the server's binary, a release build")
    parser.add_argument("--config", default=str(HERE / "configs" / "a2d-120m.json"))
    parser.add_argument("--prompt", type=int, default=64, help="tokens before the gap")
    parser.add_argument("--gap", type=int, default=192, help="masked slots")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--completions", type=int, default=3, help="measured completions a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=["float32", "bfloat16"], help=argparse.SUPPRESS)
    return parser.parse_args()


def status_mb(field):
    """A line of /proc/self/status, in MB."""
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"/proc/self/status has no {field}")


def load(config, dtype):
    """The network of an a2d-qwen3 config.json: Qwen3 whose attention is not causal."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    fields = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = Qwen3ForCausalLM(Qwen3Config(**fields, attn_implementation="sdpa", use_cache=False)).eval()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


def denoise(model, canvas, mask, steps):
    """dllm's MDLMSampler at temperature 0, one block; returns the seconds of a step."""
    import torch

    begun = time.perf_counter()
    length = int((canvas == mask).sum())
    done = 0
    for step in range(steps):
        # No mask: every slot sees every other.
        logits = model(input_ids=canvas, attention_mask={"full_attention": None}).logits.float()
        logits[..., mask] = float("-inf")
        probability, token = logits.softmax(-1).max(-1)
        masked = canvas == mask
        confidence = probability.masked_fill(~masked, float("-inf"))
        due = round(length * (step + 1) / steps) - done
        done += due
        chosen = confidence[0].topk(due).indices
        canvas[0, chosen] = token[0, chosen]
    assert not (canvas == mask).any()
    return (time.perf_counter() - begun) / steps


def worker(args):
    """One round of PyTorch, as a line of JSON."""
    import torch

    config = json.load(open(args.config))
    mask = config["mask_token_id"]
    with torch.inference_mode():
        model = load(config, getattr(torch, args.worker))
        weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
        prompt = torch.arange(args.prompt) % 97 + 1
        canvas = torch.cat([prompt, torch.full((args.gap,), mask)])[None]
        denoise(model, canvas.clone(), mask, args.steps)
        times = [denoise(model, canvas.clone(), mask, args.steps) for _ in range(args.completions)]
    print(json.dumps({
        "step_ms": min(times) * 1e3,
        "weights_mb": weights,
        "highest_mb": status_mb("VmHWM:"),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__],
    }))


def run_torch(args, dtype):
    own = [sys.executable, __file__, "--worker", dtype, "--config", args.config]
    for name in ("prompt", "gap", "steps", "completions"):
        own += [f"--{name}", str(getattr(args, name))]
    return json.loads(subprocess.run(own, check=True, stdout=subprocess.PIPE).stdout)


def run_unmask(args, dtype):
    # Made-up weights come with a tokenizer of bytes: as many characters as tokens.
    command = [args.unmask, "bench", "--json", "--device", "cpu", "--load-format", "dummy",
               "--model", args.config, "--dtype", dtype, "--prompt", "a" * args.prompt,
               "--gap", str(args.gap), "--steps", str(args.steps),
               "--requests", str(args.completions), "--concurrency", "1"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {
        "step_ms": found["engine"]["step_ms"]["least"],
        "weights_mb": found["memory"]["weights_mb"],
        "highest_mb": found["memory"]["highest_mb"],
    }


def main():
    args = arguments()
    if args.worker:
        return worker(args)
    if not args.unmask:
        raise SystemExit("--unmask: name the binary to measure")
    runs = {
        "unmask f32": lambda: run_unmask(args, "f32"),
        "torch f32": lambda: run_torch(args, "float32"),
        "unmask q8_0": lambda: run_unmask(args, "q8_0"),
        "torch bf16": lambda: run_torch(args, "bfloat16"),
    }
    found = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            found[name].append(run())
    best = {}
    print(f"{args.prompt} + {args.gap} slots in {args.steps} steps, best of {args.rounds} rounds")
    for name, rounds in found.items():
        step = min(r["step_ms"] for r in rounds)
        beyond = min(r["highest_mb"] - r["weights_mb"] for r in rounds)
        best[name] = step, beyond
        steps = ", ".join(f"{r['step_ms']:.1f}" for r in rounds)
        print(f"{name:12} step {step:7.1f} ms   ({steps})   weights {rounds[0]['weights_mb']:6.0f} MB, "
              f"{beyond:6.0f} MB beyond them")
    for ours, theirs, bar in (("unmask f32", "torch f32", 1.0), ("unmask q8_0", "torch bf16", 0.9)):
        step = best[ours][0] / best[theirs][0]
        memory = best[ours][1] / best[theirs][1]
        print(f"{ours} / {theirs}: step {step:.3f} (bar {bar}), memory beyond the weights {memory:.3f} (bar 0.5)")


if __name__ == "__main__":
    main()
