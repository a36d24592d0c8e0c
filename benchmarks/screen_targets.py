"""Which target helps on which photos? Short pretrainings, judged on development images only.

    RECON_NB_DATA=... python benchmarks/screen_targets.py --list
    RECON_NB_DATA=... python benchmarks/screen_targets.py --runs runs/colour --minutes 60

Each pretraining is the preset `improved` at 32 px and width 32 with another target, for about
200,000 images (flowers: 40 passes, 127,000). It sees the training photos without their labels. Then
nearest neighbours and a linear layer get 25 or 100 labels a class, five draws of them, and are
judged on a fifth of the training photos (`development_images`). These are never labelled; of the
test photos nothing here is used. Random weights (of five seeds) and raw pixels stand beside it.

One record a result, appended as soon as it is there; what is recorded is not run again. It can be
killed at any moment: a pretraining goes on from its last checkpoint, at most five minutes back."""
import argparse, math, os, sys, tempfile, time
from dataclasses import asdict
from functools import cache
from pathlib import Path
import numpy as np, torch
from torch.nn import functional as F
from recon_nb.classification import probe
from recon_nb.config import get_preset
from recon_nb.contenders import as_contender
from recon_nb.core import append_jsonl, check_name, describe_machine, read_jsonl
from recon_nb.experiments import _locked_records
from recon_nb.generator import Output
from recon_nb.labelled import LabelledSet, development_images
from recon_nb.pixels import to_model
from recon_nb.protocols import find_labelled
from recon_nb.run import _finished_run
from recon_nb.targets import TARGETS, _oriented_gradients, _TwoScaleTarget
from recon_nb.training import train_gan

# Targets. A place is 2 x 2 pixels; what has coarser cells is repeated.

def repeat(x): return F.interpolate(x, scale_factor=2)
def cells(x): return F.avg_pool2d(x, 4)

def opponents(i_r):
    "Red against green, and both against blue; i_r runs from -1 to 1."
    r, g, b = i_r.unbind(1)
    return r-g, (r+g)/2-b

def soft_hues(i_r, *, floor, hues=6):
    "How much of which hue in 4 x 4 pixels: saturation, shared by the two nearest of six hues."
    a, c = opponents(i_r)
    angle = torch.atan2(c, a)[:,None]*hues/(2*math.pi)
    at = torch.arange(hues, device=i_r.device).view(1,-1,1,1)
    away = ((angle-at+hues/2) % hues - hues/2).abs()
    h = cells((a.square()+c.square()).sqrt()[:,None] * (1-away).clamp_min(0))
    return h/(h.norm(dim=1, keepdim=True)+floor)

class EdgesAndColour(_TwoScaleTarget):
    "Edges at two scales, hues and mean brightness, each part times a weight."
    outputs = Output(8+8+6+1, 2),
    weights, hue_floor = (1, 1, .5, .5), .1
    def parts(self, i_r):
        g = _oriented_gradients(i_r)
        hues, light = soft_hues(i_r, floor=self.hue_floor), cells(i_r.mean(1, keepdim=True))
        return [self.histogram(g, 2), *map(repeat, (self.histogram(g, 4), hues, light))]
    def make(self, i_r):
        return torch.cat([w*p for w,p in zip(self.weights, self.parts(i_r))], 1)

class QuarterColour(EdgesAndColour):
    "Edges, and hues and brightness at a quarter of their weight."
    weights = 1, 1, .25, .25

class EdgesAndHues(EdgesAndColour):
    "Edges and hues, without brightness."
    outputs, weights = (Output(8+8+6, 2),), (1, 1, .5)
    def parts(self, i_r): return super().parts(i_r)[:3]

class EdgesAndLight(EdgesAndColour):
    "Edges and brightness, without hues."
    outputs, weights = (Output(8+8+1, 2),), (1, 1, .5)
    def parts(self, i_r):
        fine, coarse, _, light = super().parts(i_r)
        return [fine, coarse, light]

class EdgesAndColourByShare(EdgesAndColour):
    "Edges, hues and brightness; each part has its share of the variance on the training photos."
    shares, least = (.4, .4, .15, .05), .02    # a part that hardly varies is not blown up
    @classmethod
    def fitted(cls, photos):
        some = to_model(photos[np.linspace(0, len(photos)-1, min(2000, len(photos))).astype(int)])
        var = [p.var((0,2,3)).sum().item() for p in EdgesAndColour().parts(some)]
        found = tuple(round((s/max(v, cls.least))**.5, 4) for s,v in zip(cls.shares, var))
        return type(cls.__name__, (cls,), dict(weights=found, variances=[round(v, 4) for v in var]))

class EqualShares(EdgesAndColourByShare):
    "Fine edges, coarse edges, hues and brightness, a quarter each: nothing is chosen."
    shares = .25, .25, .25, .25

class ColourGradients(_TwoScaleTarget):
    "Directions of edges in brightness and two opponent colours, normalised together; brightness."
    outputs, weights = (Output(2*24+1, 2),), (1, 1, .5)
    def make(self, i_r):
        planes = (i_r.mean(1), *opponents(i_r))
        g = torch.cat([_oriented_gradients(p[:,None]) for p in planes], 1)
        light = cells(i_r.mean(1, keepdim=True))
        parts = self.histogram(g, 2), repeat(self.histogram(g, 4)), repeat(light)
        return torch.cat([w*p for w,p in zip(self.weights, parts)], 1)

TRIALS = {'edges': _TwoScaleTarget, 'edges-hues-half': EdgesAndColour,
          'edges-hues-quarter': QuarterColour,
          'edges-hues-shares': EdgesAndColourByShare, 'edges-hues-equal': EqualShares,
          'edges-hues-only': EdgesAndHues, 'edges-light-only': EdgesAndLight,
          'colour-gradients': ColourGradients}
NUMBERS = 'weights', 'shares', 'least', 'variances', 'floor', 'hue_floor' # of a target

# The plan: what can be learned soonest comes first.

SETS = dict(flowers128=dict(epochs=40), svhn=dict(epochs=25, flip=False), cifar10=dict(epochs=4),
            imagenette=dict(epochs=40))
CALLED = dict(flowers128='flowers (128 px copy)')
FIRST = 'edges', 'edges-hues-half', 'edges-hues-shares', 'edges-hues-only'
PLAN = [(c, s) for some,targets in (
    (('flowers128','svhn'), FIRST),
    (('cifar10','imagenette'), ('edges-hues-only','edges','edges-hues-half')),
    (('svhn','flowers128'), ('edges-light-only','edges-hues-quarter')),
    (('flowers128','svhn'), ('colour-gradients','edges-hues-equal')))
    for c in targets for s in some]
BESIDE = 'random weights', 'raw pixels'
MODES, LABELS, DRAWS = ('knn','linear'), (25, 100), 5

@cache
def load(name):
    "The training photos of a set, and the same in two parts: to label, and to judge on."
    s = find_labelled(name, size=32)
    dev = development_images(s.train_y)
    rest = np.setdiff1d(np.arange(len(s.train_y)), dev)
    parts = [a[i] for i in (rest, dev) for a in (s.train_x, s.train_y)]
    return s.train_x, LabelledSet(CALLED.get(name, s.name), *parts, s.classes)

def config(candidate, name, seed):
    "The fields of a pretraining that are not the preset's."
    return dict(size=32, width=32, valid=0.02, seed=seed, target=candidate, **SETS[name])

def pretrain(candidate, name, seed, *, runs, end):
    "A finished pretraining, or None if time is up or somebody stopped it."
    photos, judged = load(name)
    make = TRIALS[candidate]
    TARGETS[candidate] = target = make.fitted(photos) if hasattr(make, 'fitted') else make
    folder = Path(runs)/f'{candidate}-{name}-s{seed}'
    begun = (folder/'config.json').exists()
    how = dict(resume=True) if begun else dict(preset='improved', **config(candidate, name, seed))
    if not (run := _finished_run(folder)):
        left = (end-time.monotonic())/60
        if left <= 0: return None
        run = train_gan(photos, run_dir=folder, max_minutes=left, progress=False, **how)
        if run.stopped: return None
    numbers = {k: getattr(target, k) for k in NUMBERS if hasattr(target, k)}
    numbers['channels'] = target.outputs[0].channels
    said = {k: v for k,v in asdict(run.cfg).items() if k not in ('data','teacher')}
    return run, dict(
        schema=1, kind='pretraining', what=candidate, set=name, data=judged.name,
        seed=seed,
        target=dict(formula=target.__name__, says=target.__doc__, **numbers),
        config=said,
        saw=f'all {len(photos):,} training photos, without labels', updates=run.step,
        images_seen=run.step*run.info['bs'], explained=run.metrics[-1]['explained'],
        seconds=run.history[-1]['seconds'], machine=run.info['machine'])

def judge(encoder, candidate, name, seed, mode, labels):
    "One record: mean accuracy on development images, over draws of the labels."
    start, judged = time.monotonic(), load(name)[1]
    like = get_preset('improved', size=32, width=32) if encoder is None else None
    contender = as_contender(encoder, like=like, size=32)
    rows = probe(contender, judged, mode=mode, labels_per_class=labels, seeds=DRAWS,
                 progress=False).records()
    found = [round(r['test_accuracy'], 5) for r in rows]
    return dict(
        schema=1, kind='colour trial', what=candidate, set=name, data=judged.name, seed=seed,
        mode=mode, labels_per_class=labels, accuracy=round(float(np.mean(found)), 5), draws=found,
        judged_on='development images', n=len(judged.test_y), size=32, width=32,
        seconds=round(time.monotonic()-start, 1), machine=describe_machine())

def key(r):
    "What a record answers."
    return r['what'], r['set'], r['seed'], r.get('mode'), r.get('labels_per_class')

def work(out, *, runs, end, plan):
    "Do what is not done, until the time is up; says whether all is done."
    done = {key(r) for r in read_jsonl(out)}
    for candidate,name,seed in plan:
        todo = [(m, k) for m in MODES for k in LABELS if (candidate,name,seed,m,k) not in done]
        if not todo: continue
        if candidate in TRIALS:
            found = pretrain(candidate, name, seed, runs=runs, end=end)
            if found is None: return False
            encoder, record = found
            if key(record) not in done:
                append_jsonl(out, record)
                say(record)
        else: encoder = 'pixels' if candidate == 'raw pixels' else None
        for mode,labels in todo:
            if time.monotonic() > end: return False
            record = judge(encoder, candidate, name, seed, mode, labels)
            append_jsonl(out, record)
            say(record)
    return True

def say(r):
    if 'mode' in r: what = f"{r['mode']}, {r['labels_per_class']} labels: {r['accuracy']:.1%}"
    else: what = f"{r['images_seen']:,} images, {r['explained']:.0%} explained"
    when = time.strftime('%H:%M')
    print(f"{when} {r['what']} on {r['set']}, {what} ({r['seconds']:.0f} s)", flush=True)

def whole_plan(plan):
    "The plan; before the first pretraining on a set, what stands beside it."
    rows = [r for c,s,k in plan for r in (*((b, s, None) for b in BESIDE), (c, s, k))]
    return list(dict.fromkeys(rows))

def show(out, plan):
    "A line for each row of the plan: what is done, with its numbers, and what is to do."
    done = {key(r): r for r in read_jsonl(out)}
    heads = [f'{m} {k}' for m in MODES for k in LABELS]
    print(f"{'set':<12}{'what':<20}{'seed':>5}" + ''.join(f'{h:>12}' for h in heads))
    for c,s,seed in plan:
        cells = [done.get((c,s,seed,m,k)) for m in MODES for k in LABELS]
        print(f"{s:<12}{c:<20}{'-' if seed is None else seed:>5}"
              + ''.join(f"{100*r['accuracy']:>12.1f}" if r else f"{'to do':>12}" for r in cells))

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--list', action='store_true', help='show what is done and what is to do')
    p.add_argument('--minutes', type=float, default=math.inf, help='stop after so many')
    p.add_argument('--sets', nargs='*', help='only these, in this order')
    p.add_argument('--targets', nargs='*', help='only these, in this order')
    p.add_argument('--seeds', nargs='*', type=int, default=[0], help='of pretraining')
    p.add_argument('--runs', default=Path(tempfile.gettempdir())/'recon_nb_screen',
                   help='the folder of the pretrainings')
    p.add_argument('--out', help='the file of records (nbs/results/colour_trials.jsonl)')
    a = p.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    out = a.out or Path(__file__).parents[1]/'nbs/results/colour_trials.jsonl'
    for n in a.sets or (): check_name(n, SETS, 'set')
    for n in a.targets or (): check_name(n, TRIALS, 'target')
    kept = PLAN
    if a.sets or a.targets: kept = [(c, s) for s in a.sets or SETS for c in a.targets or TRIALS]
    plan = whole_plan([(c, s, k) for k in a.seeds for c,s in kept])
    if a.list: return show(out, plan)
    with _locked_records(out) as out:
        if not work(out, runs=a.runs, end=time.monotonic()+60*a.minutes, plan=plan): sys.exit(3)

if __name__ == '__main__': main()
