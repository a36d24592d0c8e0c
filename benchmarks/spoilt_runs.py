"""Runs spoilt on purpose, and the same runs with one thing turned: what a log looks like.

    python benchmarks/spoilt_runs.py                      # some minutes on one core
    python benchmarks/spoilt_runs.py --toy --out FILE     # tries the script itself

Each case is a pair on the embedded drawn scenes, at 32 px: a run that goes wrong, and its neighbour
that does not. A record a run: its changes against the preset, its curves, its held-out scores, what
`health` says, and three held-out photos as it paints them. The page `read_your_log` shows them.
What is recorded is not run again."""
import argparse, base64, io, os, sys, tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from recon_nb.core import append_jsonl, describe_machine, read_jsonl
from recon_nb.experiments import _locked_records
from recon_nb.shapes import draw_shapes
from recon_nb.training import train_gan
from stability import thin

CURVES = 'loss_d', 'loss_g', 'adv', 'idt', 'd_real', 'd_fake'
SMALL = dict(size=32, width=8, bs=16, epochs=15)           # 495 updates
CASES = {                                                   # preset, what spoils it, what mends it
    'healthy': ('quick', dict(epochs=25), None),
    'D has won': ('paper-baseline', dict(lr_d=5e-3, lr_g=1e-5), dict(lr_g=5e-4)),
    'a critic that nothing holds': (
        'wgan', dict(clip_d=0., lr_d=5e-3, n_critic=1, on_purpose=True),
        dict(lambda_gp=10., on_purpose=False)),
    'D sleeps': ('paper-baseline', dict(lr_d=1e-8), dict(lr_d=1e-4)),
    'outputs alike': ('quick', dict(lr_g=.1), dict(lr_g=7e-4)),
    'checkerboard': ('paper-sb', dict(lr_g=1e-2, lr_d=1e-3), dict(lr_g=5e-4)),
    'no better than trivial': ('quick', {}, dict(epochs=25)),
    'still falling': (
        'quick', dict(lr_g=1e-4, schedule='constant', lambda_adv=0., epochs=40, bs=32, width=4),
        dict(lr_g=7e-4, schedule='cosine')),
}


def strip(run, n=3):
    "The last grid of held-out photos, cut to `n`, as a PNG in base64: seen, painted, put in, true."
    found = sorted((run.dir/'samples').glob('epoch-*.png'))
    if not found: return None
    with Image.open(found[-1]) as im: im = im.crop((0, 0, im.width*n//8, im.height))
    im.save(buffer := io.BytesIO(), 'PNG', optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def train(case, mended, toy):
    "A run of a case; returns its record."
    preset, spoilt, cure = CASES[case]
    changes = spoilt | (cure if mended else {})
    folder = Path(tempfile.mkdtemp())
    small = SMALL | (dict(epochs=2, width=4) if toy else {})
    run = train_gan(draw_shapes(600, size=32)[0], preset, run_dir=folder, progress=False,
                    **(small | changes))
    said = [dict(key=f.key, short=f.short, says=f.says, turn=f.turn)
            for f in run.health().findings]
    history = list(run.history)
    return dict(
        schema=1, case=case, mended=mended, preset=preset, changes=changes, config=asdict(run.cfg),
        updates=run.step, seconds=history[-1]['seconds'] if history else 0.,
        curves=thin(history, 60, CURVES), metrics=run.metrics, health=said,
        trivial=run.info['trivial'], pictures=strip(run), machine=describe_machine())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('--toy', action='store_true', help='two epochs each: tries the script')
    p.add_argument('--out', help='the file of records (nbs/results/spoilt_runs.jsonl)')
    a = p.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    out = Path(a.out or Path(__file__).parents[1]/'nbs/results/spoilt_runs.jsonl')
    with _locked_records(out) as out:
        done = {(r['case'], r['mended']) for r in read_jsonl(out)}
        todo = [(c, m) for c, (_, _, cure) in CASES.items() for m in (False, True)
                if (c, m) not in done and not (m and cure is None)]
        for case, mended in todo:
            r = train(case, mended, a.toy)
            append_jsonl(out, r)
            print(f"{case}{', mended'*mended}: {[h['key'] for h in r['health']]}",
                  flush=True)


if __name__ == '__main__': sys.exit(main())
