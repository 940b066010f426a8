"""Denoises the same shape, prompt and steps with PyTorch + transformers and with `unmask bench`, in turns.

Usage: peer_torch.py --unmask BINARY [--device cpu|cuda] [--config FILE] [--batch N] [--prompt N] [--gap N] [--steps N]
                     [--rounds N]

The sampler is that of the plan which `unmask` follows for an a2d config by default (dllm's MDLMSampler): every
step computes the logits of the canvas, takes the most probable token of each masked slot, and commits the most
confident ones, as many as the linear schedule asks for. Weights are random on both sides; neither time nor
memory depends on them. Each side runs in a process of its own; of several rounds the best step time counts,
since other work on the machine only ever adds to it.

Of N canvases at once a step is PyTorch's of one batch of N, and that of `unmask bench --concurrency N` the time of all
N completions, HTTP included, over their steps. On a card both are in bf16, PyTorch's memory is the most that was
allocated, and that of `unmask` all that it took from the card.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import torch

HERE = pathlib.Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unmask", help="the server's binary, a release build")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--config", default=str(HERE / "configs" / "a2d-120m.json"),
                        help="config.json of an a2d-qwen3 or a llada network")
    parser.add_argument("--batch", type=int, default=1, help="canvases at once")
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


def of_a2d(config):
    """Qwen3, of an a2d-qwen3 config.json."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    fields = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    return Qwen3ForCausalLM, Qwen3Config(**fields, **COMMON)


def of_llada(config):
    """Llama of the sizes of a llada config.json, whose blocks are Llama's: the same work by other names."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM, LlamaConfig(
        hidden_size=config["d_model"], intermediate_size=config["mlp_hidden_size"], num_hidden_layers=config["n_layers"],
        num_attention_heads=config["n_heads"], num_key_value_heads=config["n_kv_heads"],
        vocab_size=config["embedding_size"], max_position_embeddings=config["max_sequence_length"],
        rms_norm_eps=config["rms_norm_eps"], rope_theta=config["rope_theta"], tie_word_embeddings=config["weight_tying"],
        **COMMON)


# No keys and values are kept from step to step.
COMMON = {"attn_implementation": "sdpa", "use_cache": False}
NETWORKS = {"A2DQwen3LMHeadModel": of_a2d, "LLaDAModelLM": of_llada}


def load(config, dtype, device):
    """The network of a config.json, with attention that is not causal."""
    [architecture] = config["architectures"]
    if architecture not in NETWORKS:
        raise SystemExit(f"--config: architectures names {architecture}; allowed: {', '.join(NETWORKS)}")
    network, sizes = NETWORKS[architecture](config)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = network(sizes).eval()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    one, other = (torch.tensor([[1, last]], device=device) for last in (2, 3))
    with torch.inference_mode():
        assert not torch.equal(model(one).logits[0, 0], model(other).logits[0, 0]), "the first slot does not see the last"
    return model


def denoise(model, canvas, mask, steps):
    """dllm's MDLMSampler at temperature 0, one block, of canvases `[batch, slots]`; returns the seconds of a step."""
    synchronise = torch.cuda.synchronize if canvas.is_cuda else lambda: None
    synchronise()
    begun = time.perf_counter()
    length = int((canvas[0] == mask).sum())
    done = 0
    for step in range(steps):
        # No mask: every slot sees every other.
        logits = model(input_ids=canvas, attention_mask=None).logits.float()
        logits[..., mask] = float("-inf")
        probability, token = logits.softmax(-1).max(-1)
        masked = canvas == mask
        confidence = probability.masked_fill(~masked, float("-inf"))
        due = round(length * (step + 1) / steps) - done
        done += due
        chosen = confidence.topk(due).indices
        canvas.scatter_(1, chosen, token.gather(1, chosen))
    assert not (canvas == mask).any()
    synchronise()
    return (time.perf_counter() - begun) / steps


def worker(args):
    """One round of PyTorch, as a line of JSON."""
    config = json.load(open(args.config))
    mask = config["mask_token_id"]
    with torch.inference_mode():
        model = load(config, getattr(torch, args.worker), args.device)
        weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
        prompt = torch.arange(args.prompt) % 97 + 1
        canvas = torch.cat([prompt, torch.full((args.gap,), mask)]).repeat(args.batch, 1).to(args.device)
        # The first one warms up.
        denoise(model, canvas.clone(), mask, args.steps)
        times = [denoise(model, canvas.clone(), mask, args.steps) for _ in range(args.completions)]
    print(json.dumps({
        "step_ms": min(times) * 1e3,
        "weights_mb": weights,
        "highest_mb": torch.cuda.max_memory_allocated() / 1e6 if canvas.is_cuda else status_mb("VmHWM:"),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__],
    }))


def run_torch(args, dtype):
    own = [sys.executable, __file__, "--worker", dtype, "--config", args.config]
    for name in ("device", "batch", "prompt", "gap", "steps", "completions"):
        own += [f"--{name}", str(getattr(args, name))]
    return json.loads(subprocess.run(own, check=True, stdout=subprocess.PIPE).stdout)


def run_unmask(args, dtype):
    # Made-up weights come with a tokenizer of bytes: as many characters as tokens.
    command = [args.unmask, "bench", "--json", "--device", args.device, "--load-format", "dummy",
               "--model", args.config, "--dtype", dtype, "--prompt", "a" * args.prompt,
               "--gap", str(args.gap), "--steps", str(args.steps),
               "--requests", str(args.completions), "--concurrency", str(args.batch)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    at_once = found["concurrent"]
    if at_once["errors"]:
        raise SystemExit(f"{at_once['errors']} of {args.batch} completions at once failed")
    return {
        "step_ms": found["engine"]["step_ms"]["least"] if args.batch == 1 else at_once["seconds"] * 1e3 / args.steps,
        "weights_mb": found["memory"]["weights_mb"],
        "highest_mb": found["device_memory"]["taken_mb"] if args.device == "cuda" else found["memory"]["highest_mb"],
    }


# Of each device: the pairs that are compared, in number formats of `unmask` and of PyTorch.
PAIRS = {
    "cpu": [("f32", "float32"), ("q8_0", "bfloat16")],
    "cuda": [("bf16", "bfloat16")],
}
TORCH_NAMES = {"float32": "f32", "bfloat16": "bf16"}
# On a CPU the most that a step may take of PyTorch's, and memory beyond the weights; of one canvas.
CPU_BARS = {"f32": 1.0, "q8_0": 0.9}
CPU_MEMORY_BAR = 0.5
# On a card how many times as many steps a second at the least, by canvases at once.
CARD_BARS = {1: 2.0, 32: 1.5}


def verdict(args, dtype, ours, theirs):
    """The comparison of two (milliseconds of a step, megabytes beyond the weights), with its bars as far as there are."""
    step, memory = ours[0] / theirs[0], ours[1] / theirs[1]
    if args.device == "cuda":
        bar = CARD_BARS.get(args.batch)
        return (f"{1 / step:.2f} times the steps a second" + (f" (bar {bar})" if bar else "")
                + f", memory beyond the weights {memory:.3f}")
    if args.batch > 1:
        return f"step {step:.3f}, memory beyond the weights {memory:.3f}"
    return f"step {step:.3f} (bar {CPU_BARS[dtype]}), memory beyond the weights {memory:.3f} (bar {CPU_MEMORY_BAR})"


def main():
    args = arguments()
    if args.worker:
        return worker(args)
    if not args.unmask:
        raise SystemExit("--unmask: name the binary to measure")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this PyTorch finds no card")
    runs = {}
    for own, peer in PAIRS[args.device]:
        runs[f"unmask {own}"] = lambda own=own: run_unmask(args, own)
        runs[f"torch {TORCH_NAMES[peer]}"] = lambda peer=peer: run_torch(args, peer)
    found = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            found[name].append(run())
    best = {}
    at_once = f", {args.batch} canvases at once" if args.batch > 1 else ""
    print(f"{args.prompt} + {args.gap} slots in {args.steps} steps{at_once}, best of {args.rounds} rounds")
    for name, rounds in found.items():
        step = min(r["step_ms"] for r in rounds)
        beyond = min(r["highest_mb"] - r["weights_mb"] for r in rounds)
        best[name] = step, beyond
        steps = ", ".join(f"{r['step_ms']:.1f}" for r in rounds)
        print(f"{name:12} step {step:7.1f} ms   ({steps})   weights {rounds[0]['weights_mb']:6.0f} MB, "
              f"{beyond:6.0f} MB beyond them")
        if args.batch > 1:
            print(f"{'':12} {args.batch * 1e3 / step:.1f} steps a second times canvases")
    for own, peer in PAIRS[args.device]:
        ours, theirs = f"unmask {own}", f"torch {TORCH_NAMES[peer]}"
        print(f"{ours} / {theirs}: {verdict(args, own, best[ours], best[theirs])}")


if __name__ == "__main__":
    main()
