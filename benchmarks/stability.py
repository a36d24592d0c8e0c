"""Which adversarial losses train steadily, and what must hold their discriminator?

    RECON_NB_DATA=FOLDER python benchmarks/stability.py --list
    RECON_NB_DATA=FOLDER python benchmarks/stability.py --minutes 60
    python benchmarks/stability.py --toy                  # tries the script itself on drawn scenes

The paper's task (`paper-sb`: the centre third, enlarged; the adversarial loss alone) on the photos
of FOLDER/scenes (`benchmarks/animals.py` makes them of VOC2012), small: 32 px, width 16, 1,000
updates of 32 photos, three seeds. Two families, each at one set of learning rates: the bounded
losses at the paper's, the Wasserstein critics at their preset's. Within a family an arm changes the
loss, or what holds D's slope, and nothing else; two arms make D twenty times faster.

Each run is one record: its config, curves of both losses, of D's opinions and of both gradients'
norms, the held-out scores of each evaluation, diversity among them, and what `health` says of it. A
run whose numbers end (`TrainingDiverged`) is a result, too. What is recorded is not run again."""
import argparse, math, os, sys, tempfile, time
from pathlib import Path

import numpy as np
import torch
from recon_nb.core import TrainingDiverged, append_jsonl, read_jsonl
from recon_nb.cost import describe_pretraining
from recon_nb.experiments import _locked_records
from recon_nb.run import GANRun
from recon_nb.training import train_gan

SMALL = dict(size=32, width=16, bs=32, epochs=1000, max_steps=1000)
FAST = 2e-3                                    # D's learning rate, twenty times the paper's
ARMS = {
    'bce': ('paper-sb', {}),
    'least squares': ('paper-sb', dict(adv='ls')),
    'hinge': ('paper-sb', dict(adv='hinge')),
    'bce, spectral': ('paper-sb', dict(norm_d='spectral')),
    'hinge, spectral': ('paper-sb', dict(adv='hinge', norm_d='spectral')),
    'bce, layer': ('paper-sb', dict(norm_d='layer')),
    'bce, layer, R1': ('paper-sb', dict(norm_d='layer', lambda_r1=10.)),
    'bce, layer, fast D': ('paper-sb', dict(norm_d='layer', lr_d=FAST)),
    'bce, layer, fast D, R1': ('paper-sb', dict(norm_d='layer', lr_d=FAST, lambda_r1=10.)),
    'bce, fast D': ('paper-sb', dict(lr_d=FAST)),
    'bce, spectral, fast D': ('paper-sb', dict(norm_d='spectral', lr_d=FAST)),
    'wgan: clip': ('wgan', {}),
    'wgan: penalty': ('wgan-gp', {}),
    'wgan: penalty, batch norm': ('wgan-gp', dict(norm_d='batch', on_purpose=True)),
    'wgan: nothing': ('wgan-gp', dict(lambda_gp=0., on_purpose=True)),
    'wgan: spectral': ('wgan-gp', dict(lambda_gp=0., norm_d='spectral')),
}


class GradientNorms:
    "A hook: the norm of each player's gradient, every so many steps."
    def __init__(self, every): self.every, self.found = every, []
    def __call__(self, st):
        if st.event != 'step' or st.step % self.every: return
        self.found.append((st.step, *(self.norm(net) for net in (st.gen_net, st.disc))))
    def norm(self, net):
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))
    def curves(self):
        step, gen, disc = zip(*self.found)
        return dict(step=step, gen=rounded(gen), disc=rounded(disc))


def rounded(values): return [float(f'{v:.4g}') for v in values]


def thin(history, most=100, names=('loss_d', 'loss_g', 'd_real', 'd_fake')):
    "Means over at most so many equal parts of a run: its step, and those of `names` that it has."
    parts = np.array_split(np.arange(len(history)), min(most, len(history)))
    def mean(k, part):
        known = [history[i][k] for i in part if k in history[i]]     # G moves at some steps only
        return sum(known)/len(known) if known else math.nan
    return dict(step=[history[p[-1]]['step'] for p in parts],
                **{k: rounded(mean(k, p) for p in parts)
                   for k in names if any(k in row for row in history)})


def train(a, arm, seed):
    "One run, from its beginning; returns its record."
    preset, changes = ARMS[arm]
    small = SMALL | (dict(width=8, max_steps=8) if a.toy else {})
    folder = Path(tempfile.mkdtemp(dir=a.runs))
    norms = GradientNorms(2 if a.toy else 10)
    photos = 'shapes' if a.toy else str(Path(os.environ['RECON_NB_DATA'])/'scenes')
    try: train_gan(photos, preset, run_dir=folder, seed=seed, hooks=norms, device=a.device,
                   progress=False, **(small | changes))
    except TrainingDiverged as e: ended = str(e)
    else: ended = None
    run = GANRun.load(folder, device='cpu')
    return describe_pretraining(run, arm) | dict(
        diverged=ended, curves=thin(list(run.history)), gradients=norms.curves(),
        metrics=run.metrics, trivial=run.info['trivial'],
        health=[f.key for f in run.health().findings])


def work(a, out, end):
    "Run what is not recorded, a seed of all arms after the other; says whether all is there."
    done = {(r['row'], r['seed']) for r in read_jsonl(out)}
    for seed in range(1 if a.toy else 3):
        for arm in ARMS:
            if (arm, seed) in done: continue
            if time.monotonic() > end: return False
            r = train(a, arm, seed)
            append_jsonl(out, r)
            print(f"{time.strftime('%H:%M')} {say(r)}", flush=True)
    return True


def say(r):
    "A record in a line."
    found = ', '.join(f'{k} {v:.3g}' for k, v in r['metrics'][-1].items()) if r['metrics'] else ''
    return f"{r['row']:28} seed {r['seed']}: {r['diverged'] or found}; {', '.join(r['health'])}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('--list', action='store_true', help='show what is recorded')
    p.add_argument('--minutes', type=float, default=math.inf, help='stop after so many')
    p.add_argument('--toy', action='store_true', help='drawn scenes, a minute: tries the script')
    p.add_argument('--device', default='cpu', help='where to compute')
    p.add_argument('--runs', help='a folder for the runs; a temporary one if not given')
    p.add_argument('--out', help='the file of records (nbs/results/stability.jsonl)')
    a = p.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    a.runs = Path(a.runs or tempfile.mkdtemp())
    a.runs.mkdir(parents=True, exist_ok=True)
    results = a.runs if a.toy else Path(__file__).parents[1]/'nbs/results'
    out = Path(a.out or results/'stability.jsonl')
    if a.list:
        for r in read_jsonl(out): print(say(r))
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked_records(out) as out:
        return 0 if work(a, out, time.monotonic()+60*a.minutes) else 3


if __name__ == '__main__': sys.exit(main())
