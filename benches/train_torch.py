"""Trains the same shape with PyTorch and with `unmask train`, in turns, and compares tokens a second and memory.

Usage: train_torch.py --unmask BINARY [--steps N] [--rounds N] and the shape, as `unmask train` names it

Both do the same work: windows of random text, times stratified over the batch, masked tokens' cross-entropy
with the weight 1/t over all tokens, clipping by the global norm, AdamW with decay on the matrices, and an
average of the weights. PyTorch's side runs its head on masked slots alone, like ours, and its fused attention
and AdamW. Each side runs in a process of its own; the median step of a round counts, and of several rounds
the best one, since other work on the machine only ever takes speed away.
"""

import argparse
import json
import math
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

WARM_STEPS = 2


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unmask", help="the trainer's binary, a release build")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--mlp-hidden", type=int, default=704)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="measured steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=["f32", "bf16"], help=argparse.SUPPRESS)
    return parser.parse_args()


def highest_mb(status):
    """The most memory that a process has held, in MB, from its /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("/proc/PID/status has no VmHWM")


def network(args):
    """LLaDA's network: bidirectional attention with rotary positions, RMSNorm, gated MLPs, an untied head."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, heads = args.hidden, args.heads
    size = width // heads

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn_norm = nn.RMSNorm(width, eps=1e-5)
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.attn_out = nn.Linear(width, width, bias=False)
            self.ff_norm = nn.RMSNorm(width, eps=1e-5)
            self.gate_up = nn.Linear(width, 2 * args.mlp_hidden, bias=False)
            self.ff_out = nn.Linear(args.mlp_hidden, width, bias=False)

        def forward(self, x, cos, sin):
            windows, slots, _ = x.shape
            qkv = self.qkv(self.attn_norm(x)).view(windows, slots, 3, heads, size).permute(2, 0, 3, 1, 4)

            def rotated(part):
                left, right = part.chunk(2, -1)
                return part * cos + torch.cat([-right, left], -1) * sin

            q, k, v = rotated(qkv[0]), rotated(qkv[1]), qkv[2]
            mixed = functional.scaled_dot_product_attention(q, k, v)
            x = x + self.attn_out(mixed.transpose(1, 2).reshape(windows, slots, width))
            gate, up = self.gate_up(self.ff_norm(x)).chunk(2, -1)
            return x + self.ff_out(functional.silu(gate) * up)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(args.vocab_size, width)
            self.blocks = nn.ModuleList(Block() for _ in range(args.layers))
            self.norm = nn.RMSNorm(width, eps=1e-5)
            self.head = nn.Linear(width, args.vocab_size, bias=False)
            rates = 10_000.0 ** (-torch.arange(0, size, 2) / size)
            angles = torch.outer(torch.arange(args.context), rates).repeat(1, 2)
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())

        def forward(self, tokens, masked):
            x = self.embedding(tokens)
            cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
            for block in self.blocks:
                x = block(x, cos, sin)
            return self.head(self.norm(x[masked]))

    return Network()


def worker(args):
    """One round of PyTorch, as a line of JSON."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    model = network(args)
    average = [p.detach().clone() for p in model.parameters()]
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embedding" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or "embedding" in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98), fused=True)
    times = []
    for step in range(WARM_STEPS + args.steps):
        begun = time.perf_counter()
        clean = torch.randint(3, args.vocab_size, (args.batch, args.context))
        t = (torch.rand(1) + torch.arange(args.batch)) / args.batch
        masked = torch.rand(args.batch, args.context) < t[:, None]
        noisy = clean.masked_fill(masked, 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.worker == "bf16"):
            logits = model(noisy, masked)
        losses = functional.cross_entropy(logits.float(), clean[masked], reduction="none")
        weights = (1 / t.clamp(min=1e-3))[:, None].expand(-1, args.context)[masked]
        loss = (losses * weights).sum() / clean.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 0.001)
        if step >= WARM_STEPS:
            times.append(time.perf_counter() - begun)
    assert math.isfinite(loss.item())
    print(json.dumps({
        "tokens_per_second": args.batch * args.context / statistics.median(times),
        "highest_mb": highest_mb(open("/proc/self/status").read()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }))


def run_torch(args, precision):
    own = [sys.executable, __file__, "--worker", precision]
    for name in ("vocab-size", "context", "layers", "hidden", "heads", "mlp-hidden", "batch", "steps"):
        own += [f"--{name}", str(getattr(args, name.replace("-", "_")))]
    return json.loads(subprocess.run(own, check=True, stdout=subprocess.PIPE).stdout)


def write_text(path, words, seed):
    """A text of random words, of which a tokenizer of the size asked for can be made."""
    draws = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    made = random.Random(0)
    known = ["".join(made.choices(letters, k=made.randint(2, 9))) for _ in range(4000)]
    path.write_text(" ".join(draws.choices(known, k=words)) + "\n")


def run_unmask(args, precision):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_text(folder / "train.txt", 200_000, 1)
        write_text(folder / "valid.txt", 4 * args.context, 2)
        command = [args.unmask, "train", "--data", folder / "train.txt", "--valid", folder / "valid.txt",
                   "--out", folder / "out", "--precision", precision, "--optimizer", "adamw", "--valid-windows", "1",
                   "--valid-every", "1000000", "--save-every", "1000000",
                   "--steps", str(WARM_STEPS + args.steps)]
        for name in ("vocab-size", "context", "layers", "hidden", "heads", "mlp-hidden", "batch"):
            command += [f"--{name}", str(getattr(args, name.replace("-", "_")))]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        highest = 0.0
        while process.poll() is None:
            try:
                highest = max(highest, highest_mb(pathlib.Path(f"/proc/{process.pid}/status").read_text()))
            except (OSError, SystemExit):
                pass  # It has just ended.
            time.sleep(0.05)
        if process.returncode != 0:
            raise SystemExit(f"unmask train ended with {process.returncode}")
        lines = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
        rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
        return {"tokens_per_second": statistics.median(rates[WARM_STEPS:]), "highest_mb": highest}


def main():
    args = arguments()
    if args.worker:
        return worker(args)
    if not args.unmask:
        raise SystemExit("--unmask: name the binary to measure")
    runs = {
        "unmask f32": lambda: run_unmask(args, "f32"),
        "torch f32": lambda: run_torch(args, "f32"),
        "unmask bf16": lambda: run_unmask(args, "bf16"),
        "torch bf16": lambda: run_torch(args, "bf16"),
    }
    found = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            found[name].append(run())
    print(f"{args.layers} blocks of {args.hidden}, vocabulary {args.vocab_size}, "
          f"{found['torch f32'][0]['parameters']:,} parameters; {args.batch} windows of {args.context} tokens a step; "
          f"best of {args.rounds} rounds")
    best = {}
    for name, rounds in found.items():
        best[name] = max(r["tokens_per_second"] for r in rounds)
        rates = ", ".join(f"{r['tokens_per_second']:.0f}" for r in rounds)
        print(f"{name:12} {best[name]:7.0f} tokens/s   ({rates})   at most {rounds[0]['highest_mb']:.0f} MB")
    for ours, theirs, bar in (("unmask f32", "torch f32", "0.9"), ("unmask bf16", "torch bf16", "none")):
        print(f"{ours} / {theirs}: {best[ours] / best[theirs]:.2f} (bar {bar})")


if __name__ == "__main__":
    main()
