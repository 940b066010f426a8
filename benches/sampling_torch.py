"""Times what official samplers do with logits in PyTorch beside the reduction of `unmask bench device`.

Usage: sampling_torch.py --unmask BINARY [--device cpu|cuda] [--rows N] [--vocab N] [--tries N]

Greedy and temperature 1 are LLaDA's generate.py: arg-max of the logits, with float64 Gumbel noise where there is a
temperature, and the token's probability by a soft-max in float64. Top-p is Dream's: tokens beyond the nucleus are taken
out by a sort, and the rest is drawn from in the logits' own type. Of several tries the fastest counts on both sides; on
a card PyTorch's time is between two CUDA events, and its memory the most that was allocated beside the logits.
"""

import argparse
import json
import subprocess
import time

import torch

# Bars on a card: so many times as fast, and as little memory.
FASTER, LESS = 10, 20
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def probability(distribution, token):
    return distribution.gather(-1, token[:, None])[:, 0]


def greedy(logits):
    token = logits.argmax(-1)
    return token, probability(logits.to(torch.float64).softmax(-1), token)


def drawn(logits):
    exact = logits.to(torch.float64)
    noise = -torch.rand_like(exact).log()
    token = (exact.exp() / noise).argmax(-1)
    return token, probability(logits.to(torch.float64).softmax(-1), token)


def nucleus(logits, top_p=0.95):
    ordered, order = logits.sort(descending=True)
    beyond = ordered.softmax(-1).cumsum(-1) > top_p
    # The token that passes the limit is the last one in.
    beyond = beyond.roll(1, -1)
    beyond[:, 0] = False
    removed = torch.zeros_like(beyond).scatter(-1, order, beyond)
    kept = logits.masked_fill(removed, torch.finfo(logits.dtype).min).softmax(-1)
    token = torch.distributions.Categorical(probs=kept).sample()
    return token, probability(kept, token)


# By the names that `unmask bench device` gives them.
SEQUENCES = {"greedy": greedy, "temperature 1": drawn, "temperature 1, top-p 0.95": nucleus}


def seconds_on_cpu(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def seconds_on_card(work):
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    work()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1e3


def measure(sequence, logits, tries):
    """The fastest of several tries, in seconds, and on a card the bytes beside the logits."""
    on_card = logits.is_cuda
    seconds = seconds_on_card if on_card else seconds_on_cpu
    sequence(logits)
    if on_card:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    fastest = min(seconds(lambda: sequence(logits)) for _ in range(tries))
    return fastest, torch.cuda.max_memory_allocated() - before if on_card else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unmask", required=True, help="the server's binary, a release build")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=126_464)
    parser.add_argument("--tries", type=int, default=8)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this PyTorch finds no card")
    command = [args.unmask, "bench", "device", "--json", "--device", args.device, "--rows", str(args.rows),
               "--vocab", str(args.vocab), "--tries", str(args.tries)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    reductions = {reduction["sampling"]: reduction for reduction in report["reductions"]}
    print(f"[{args.rows}, {args.vocab}] logits on {args.device}, best of {args.tries}; torch {torch.__version__}")
    for name, sequence in SEQUENCES.items():
        ours = reductions[name]
        torch.manual_seed(0)
        # Of the deviation that `unmask bench device` draws.
        logits = (torch.randn(args.rows, args.vocab, device=args.device) * 3).to(DTYPES[ours["dtype"]])
        with torch.inference_mode():
            seconds, extra = measure(sequence, logits, args.tries)
        times = seconds * 1e3 / ours["milliseconds"]
        print(f"{name} ({ours['dtype']}): torch {seconds * 1e3:.3f} ms, unmask {ours['milliseconds']:.3f} ms")
        print(f"  {times:.1f} times as fast" + (f" (bar {FASTER})" if extra is not None else ""))
        if ours["kernel"]:
            kernel_ms = ours["kernel"]["milliseconds"]
            print(f"  its kernel by itself {kernel_ms:.3f} ms: {seconds * 1e3 / kernel_ms:.1f} times as fast")
        if extra is not None:
            own = ours["device_bytes"]
            print(f"  memory beside the logits: torch {extra / 1e6:.1f} MB, unmask {own / 1e6:.3f} MB, "
                  f"1/{extra / own:.0f} (bar 1/{LESS})")


if __name__ == "__main__":
    main()
