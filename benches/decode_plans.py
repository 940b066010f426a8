"""Compares decode plans by what they write: quality and variety against forwards, as a table and a plot.

Usage: decode_plans.py --unmask BINARY --reference TEXT --texts TEXT [--model DIR] [--windows N] [--out FOLDER]

Places at even distances in TEXT, which neither the model nor the judge has seen, lose 32 tokens, which every plan then
writes: once knowing what precedes them alone (completion), once knowing what follows too (infill). The judge is a
trigram model of words that is counted in the reference text and knows nothing of the network:

- bits/character: how improbable it finds what was written, and for infills how that joins what follows. Plain
  repetition of frequent words is cheap too, so look at it beside the variety.
- variety: distinct pairs of words / pairs of words, over all that a plan wrote.
- no words: the share of words that the reference lacks. Of the books themselves some are names.

The first row is what the books themselves say at these places: a plan should come near to it in both.
"""

import argparse
import collections
import concurrent.futures
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import time
import urllib.request

GAP = 32
CONTEXT_WORDS = 40
# No proxy stands before a server on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unmask", required=True, help="the server's binary, a release build")
    parser.add_argument("--model", help="a checkpoint [default: the embedded model]")
    parser.add_argument("--reference", required=True, help="text that the judge counts in, plain or .zst")
    parser.add_argument("--texts", required=True, help="text that places are taken from, plain or .zst")
    parser.add_argument("--windows", type=int, default=24, help="places")
    parser.add_argument("--clients", type=int, default=4, help="requests at a time")
    parser.add_argument("--only", help="a regular expression: plans whose name matches")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for decode-plans.svg, and decode-plans.json with all that was written")
    return parser.parse_args()


def read(path):
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout.decode()
    return pathlib.Path(path).read_text()


class Judge:
    """A trigram model of words with absolute discounting, each order interpolated with the one below."""

    DISCOUNT = 0.75

    def __init__(self, text):
        words = [word.lower() for word in WORD.findall(text)]
        self.total = len(words)
        self.counts = [collections.Counter(words)]
        self.contexts = [None]
        self.kinds = [None]
        for order in (2, 3):
            grams = collections.Counter(zip(*(words[start:] for start in range(order))))
            contexts, kinds = collections.Counter(), collections.Counter()
            for gram, count in grams.items():
                contexts[gram[:-1]] += count
                kinds[gram[:-1]] += 1
            self.counts.append(grams)
            self.contexts.append(contexts)
            self.kinds.append(kinds)

    def probability(self, gram):
        order = len(gram)
        if order == 1:
            # A word that the reference lacks is as rare as one that stands there half a time.
            return (self.counts[0][gram[0]] or 0.5) / (self.total + 1)
        lower = self.probability(gram[1:])
        seen = self.contexts[order - 1][gram[:-1]]
        if not seen:
            return lower
        count = max(self.counts[order - 1][gram] - self.DISCOUNT, 0)
        return (count + self.DISCOUNT * self.kinds[order - 1][gram[:-1]] * lower) / seen

    def bits(self, before, text, after):
        """Bits and characters of the words of `text`, and of the first two of `after`, if there are any."""
        context = [word.lower() for word in WORD.findall(before)]
        # Joined before it is cut into words: a gap may end within one.
        words = [word.lower() for word in WORD.findall(text + after)]
        if after:
            words = words[: len(words) - len(WORD.findall(after)) + 2]
        else:
            # What the gap cuts off is no word.
            words = words[:-1]
        line = context[-2:] + words
        start = len(line) - len(words)
        bits = sum(-math.log2(self.probability(tuple(line[at - 2 : at + 1]))) for at in range(start, len(line)))
        return bits, sum(len(word) + 1 for word in words)


class Server:
    """An unmask server on a free port."""

    def __init__(self, binary, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [binary, "serve", "--port", str(port)] + (["--model", model] if model else [])
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"RUST_LOG": "error"})
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with status {self.process.returncode}")
            try:
                OPENER.open(self.url + "/ready").close()
                return
            except OSError:
                time.sleep(0.1)
        self.process.terminate()
        raise SystemExit("the server does not become ready")

    def post(self, path, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with OPENER.open(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error.read().decode()}") from error


def places(server, text, count):
    """Texts before, of and after `count` gaps at even distances."""
    found = []
    for number in range(count):
        at = (2 * number + 1) * len(text) // (2 * count)
        words = list(re.finditer(r"\s\S+", text[at : at + 1000]))
        begin, end = words[0].start(), words[CONTEXT_WORDS].start()
        before, rest = text[at + begin : at + end].strip(), text[at + end : at + end + 1000]
        tokens = server.post("/tokenize", {"content": rest, "add_special": False})["tokens"]
        truth = server.post("/detokenize", {"tokens": tokens[:GAP]})["content"]
        after = " ".join(rest[len(truth) :].split(" ")[:CONTEXT_WORDS])
        found.append((before, truth, after))
    return found


SAMPLED = {"temperature": 0.7, "top_p": 0.9}
# What ranks the slots: its name, its place in a request, and its colour in the plot.
ORDERS = {
    "confidence": ({"score": "confidence", "score_temperature": 0}, "#c84628"),
    "confidence / 0.3, drawn": ({"score": "confidence", "score_temperature": 0.3}, "#326ebe"),
    "margin": ({"score": "margin", "score_temperature": 0}, "#b08020"),
    "entropy": ({"score": "entropy", "score_temperature": 0}, "#8050a0"),
    "random": ({"score": "random", "score_temperature": 0}, "#3c8c46"),
    "from the left": ({"score": "left_to_right", "score_temperature": 0}, "#707070"),
}
STEPS = (32, 16, 8, 4)


def plans():
    """Names, settings of the request, and its `diffusion` object."""
    for name, (order, _) in ORDERS.items():
        for steps in STEPS:
            yield f"{name}, {steps} steps", SAMPLED, order | {"steps": steps}
    confident, drawn, at_random = (ORDERS[name][0] for name in ("confidence", "confidence / 0.3, drawn", "random"))
    for temperature in (0, 0.5, 0.9, 1.0):
        yield f"drawn, temperature {temperature}", SAMPLED | {"temperature": temperature}, drawn
    for name, order in (("confidence", confident), ("random", at_random)):
        yield f"{name}, temperature 0", SAMPLED | {"temperature": 0}, order
    for top_p in (0.8, 1.0):
        yield f"drawn, top-p {top_p}", SAMPLED | {"top_p": top_p}, drawn
    for temperature in (0.1, 1.0):
        yield f"confidence / {temperature}, drawn", SAMPLED, drawn | {"score_temperature": temperature}
    yield "drawn, temperature from 1 to 0.3", SAMPLED | {"temperature": 1.0}, drawn | {
        "temperature_schedule": {"linear": 0.3},
        "steps": 32,
    }
    yield "drawn, blocks of 8", SAMPLED, drawn | {"block_length": 8}
    for threshold in (0.9, 0.5, 0.2):
        yield f"threshold {threshold}", SAMPLED, confident | {"budget": {"threshold": threshold}}
    for bound in (0.5, 1, 2):
        yield f"entropy bound {bound}", SAMPLED, confident | {"budget": {"entropy_bound": bound}}
    for steps in (32, 64):
        revision = {"revision": {"remask": {"confidence": 0.1}}, "budget": {"ancestral": {"eps": 0.001}}, "steps": steps}
        yield f"ReMDM, confidence 0.1, {steps} steps", SAMPLED, {"score_temperature": 0} | revision


def written(server, before, after, settings, diffusion, seed):
    body = {"segments": [before, {"gap": {"tokens": GAP}}] + ([after] if after else []), "seed": seed}
    answer = server.post("/v1/infill", body | settings | {"diffusion": diffusion})
    return answer["choices"][0]["gaps"][0]["text"], answer["diffusion"]["nfe"]


def row(judge, pieces):
    """Bits a character, variety and share of no words of texts, each with what stands before and after it."""
    scores = [judge.bits(*piece) for piece in pieces]
    pairs = []
    for _, text, _ in pieces:
        words = [word.lower() for word in WORD.findall(text)]
        pairs += zip(words, words[1:])
    words = [word.lower() for _, text, _ in pieces for word in WORD.findall(text)[:-1] if word[0].isalpha()]
    return (
        sum(bits for bits, _ in scores) / sum(length for _, length in scores),
        len(set(pairs)) / len(pairs),
        sum(word not in judge.counts[0] for word in words) / len(words),
    )


def shown(bits, variety, unknown):
    return f"{bits:.2f} | {variety:.2f} | {unknown:.1%}"


def plot(kept, truth):
    """Quality and variety of infills against forwards, a line for each order."""
    width, height, left, top = 420, 300, 56, 24
    steps = sorted(STEPS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {height + 96}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for panel, (title, field, low, high) in enumerate(
        [("bits/character of infills", "bits", 0.8, 3.0), ("variety of infills", "variety", 0.3, 1.0)]
    ):

        def x(count):
            return panel * width + left + math.log2(count / steps[0]) * (width - left - 24) / math.log2(steps[-1] / steps[0])

        def y(value):
            return top + height - (min(max(value, low), high) - low) / (high - low) * height

        parts.append(f'<text x="{panel * width + left}" y="14">{title}</text>')
        for tick in range(5):
            value = low + tick * (high - low) / 4
            parts.append(f'<line x1="{x(steps[0])}" x2="{x(steps[-1])}" y1="{y(value)}" y2="{y(value)}" stroke="#dddddd"/>')
            parts.append(f'<text x="{x(steps[0]) - 8}" y="{y(value) + 4}" text-anchor="end">{value:.2f}</text>')
        for count in steps:
            parts.append(f'<text x="{x(count)}" y="{top + height + 18}" text-anchor="middle">{count}</text>')
        book = y(truth[panel])
        parts.append(f'<line x1="{x(steps[0])}" x2="{x(steps[-1])}" y1="{book}" y2="{book}" stroke="#000000" stroke-dasharray="4"/>')
        for name, (_, colour) in ORDERS.items():
            rows = {row["plan"]: row for row in kept if row["kind"] == "infill"}
            line = [(x(count), y(rows[f"{name}, {count} steps"][field])) for count in steps if f"{name}, {count} steps" in rows]
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in line)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in line]
    at, line = left, top + height + 48
    for name, colour in [*((name, colour) for name, (_, colour) in ORDERS.items()), ("the books", "#000000")]:
        parts.append(f'<rect x="{at}" y="{line - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14}" y="{line}" font-size="10">{name}</text>')
        at += 42 + 6 * len(name)
    parts.append(f'<text x="{width}" y="{top + height + 72}" text-anchor="middle">forwards for {GAP} tokens</text></svg>')
    return "\n".join(parts) + "\n"


def main():
    args = arguments()
    server = Server(args.unmask, args.model)
    try:
        judge = Judge(read(args.reference))
        cut = places(server, read(args.texts).replace("<|doc|>", ""), args.windows)
        truth = {
            "completion": row(judge, [(before, text, "") for before, text, _ in cut]),
            "infill": row(judge, cut),
        }
        print("| plan | forwards | completion, bits/character | variety | no words | infill, bits/character | variety | no words |")
        print("|---|---|---|---|---|---|---|---|")
        cells = " | ".join(shown(*figures) for figures in truth.values())
        print(f"| the books | – | {cells} |", flush=True)
        kept = []
        for name, settings, diffusion in plans():
            if args.only and not re.search(args.only, name):
                continue
            cells, forwards = [], []
            for kind in truth:
                with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
                    jobs = [
                        pool.submit(written, server, before, after if kind == "infill" else "", settings, diffusion, seed)
                        for seed, (before, _, after) in enumerate(cut)
                    ]
                    answers = [job.result() for job in jobs]
                pieces = [
                    (before, text, after if kind == "infill" else "")
                    for (text, _), (before, _, after) in zip(answers, cut)
                ]
                bits, variety, unknown = row(judge, pieces)
                cells.append(shown(bits, variety, unknown))
                forwards += [nfe for _, nfe in answers]
                kept.append({"plan": name, "kind": kind, "bits": bits, "variety": variety, "no_words": unknown, "texts": [t for t, _ in answers]})
            print(f"| {name} | {sum(forwards) / len(forwards):.1f} | {' | '.join(cells)} |", flush=True)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "decode-plans.json").write_text(json.dumps(kept, indent=1))
            (args.out / "decode-plans.svg").write_text(plot(kept, truth["infill"]))
    finally:
        server.process.terminate()
        server.process.wait()


if __name__ == "__main__":
    main()
