"""How far is the formula of `predict_seconds` from what a machine does?

    python benchmarks/cost.py                     # five minutes on two quiet cores
    python benchmarks/cost.py --quick             # tries the script itself

A matrix product and a copy give the machine's two numbers. Then training steps of several sizes and
widths are timed, and each is set beside what the formula says of it. One record a step, in
nbs/results/cost.jsonl, of which `58_cost` makes its table."""
import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from recon_nb.config import get_preset
from recon_nb.core import append_jsonl, describe_machine
from recon_nb.cost import _noisy_state, predict_seconds
from recon_nb.batches import fetch
from recon_nb.machine import check_device
from recon_nb.steps import train_step

RECORDS = Path(__file__).resolve().parents[1]/'nbs'/'results'/'cost.jsonl'
GRID = [('paper-sb', size, width, bs) for size, width, bs in (
    (32, 16, 64), (32, 32, 64), (32, 64, 64), (80, 16, 16), (80, 16, 64), (80, 64, 16))]
GRID += [('improved', size, width, 64) for size, width in ((32, 32), (64, 32), (32, 64))]
PHOTOS = 6400                                  # of the run that is predicted


def wait(device):
    if device.type == 'cuda': torch.cuda.synchronize()


def seconds_of(work, device, least=1.):
    "Median seconds of a call, after one that does not count."
    work()
    wait(device)
    took, end = [], time.monotonic()+least
    while len(took) < 3 or time.monotonic() < end:
        start = time.monotonic()
        work()
        wait(device)
        took.append(time.monotonic()-start)
    return median(took), len(took)


def measure_machine(device):
    "Operations a second of a product, bytes a second of a copy: read once, written once."
    n = 2048 if device.type == 'cpu' else 8192
    a, x = torch.randn(n, n, device=device), torch.zeros(2**26, device=device)
    y = torch.empty_like(x)
    product, copy = seconds_of(lambda: a@a, device)[0], seconds_of(lambda: y.copy_(x), device)[0]
    return dict(flops=2*n**3/product, bandwidth=2*x.nbytes/copy)


def measure_step(preset, size, width, bs, device):
    "A record: seconds of a step, and what the formula says, with the machine measured just before."
    cfg = get_preset(preset, size=size, width=width, bs=bs, epochs=1)
    machine = measure_machine(device)
    st = _noisy_state(cfg, bs=bs, device=str(device))
    index = st.train[:bs]

    def step():
        train_step(st, fetch(st, index, augment=True))
        st.step += 1
    took, n = seconds_of(step, device, least=4)
    launch = 5e-6 if device.type == 'cuda' else 0.
    predicted = predict_seconds(cfg, PHOTOS, **machine, launch=launch)/(PHOTOS//bs)
    return dict(schema=1, preset=preset, size=size, width=width, bs=bs, n=n, **machine,
                seconds_per_step=took, predicted=predicted, ratio=took/predicted,
                device=str(device), machine=describe_machine())


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', help='the best there is, if not given')
    p.add_argument('--out', type=Path, default=RECORDS)
    p.add_argument('--quick', action='store_true', help='two small steps, no record')
    a = p.parse_args(argv)
    device = check_device(a.device)
    for what in [('paper-sb', 32, 4, 8), ('improved', 32, 4, 8)] if a.quick else GRID:
        r = measure_step(*what, device)
        if not a.quick: append_jsonl(a.out, r)
        print(f"{what[0]:9} {what[1]} px, width {what[2]:2}, batch {what[3]:3}: "
              f"{1000*r['seconds_per_step']:7.1f} ms, formula {1000*r['predicted']:7.1f} ms, "
              f"{r['ratio']:.2f} times as long", flush=True)
    return 0


if __name__ == '__main__': sys.exit(main())
