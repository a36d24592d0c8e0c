"""Does `improved-edges` help a ResNet-18? Pretrained on photos without labels, against scratch.

    RECON_NB_DATA=... python benchmarks/backbone.py --list
    RECON_NB_DATA=... python benchmarks/backbone.py --runs runs/backbone --minutes 60

timm's ResNet-18 sees the training photos of Imagenette at 64 px (20 passes, three pretrainings)
and of CIFAR-10 at 32 px (4 passes, one pretraining, CIFAR stem). Then 25 or 100 labels a class are
given to nearest neighbours, a linear layer and fine-tuning, and the test photos judge. Random
weights and raw pixels stand beside the frozen probes, scratch beside fine-tuning: with the same
head, schedule, augmentation, number of updates and, in the last part of the plan, the same search
of a recipe. Imagenette comes with the network's own stem first, which costs least (about 15 minutes
of a core for a pretraining), then without the pool (35 minutes; 60 for CIFAR-10).

One record a result, appended as soon as it is there; what is recorded is not run again. It can be
killed at any moment: a pretraining goes on from its last checkpoint, at most five minutes back."""
import argparse, math, os, sys, tempfile, time
from functools import cache
from pathlib import Path
import torch
from recon_nb.config import get_preset
from recon_nb.core import append_jsonl, check_name, read_jsonl
from recon_nb.cost import describe_pretraining
from recon_nb.experiments import list_jobs, run_jobs
from recon_nb.protocols import find_labelled
from recon_nb.run import _finished_run
from recon_nb.training import train_gan

TRIALS = {                     # a set, and the fields of a pretraining on it
    'imagenette': ('imagenette', dict(size=64, stem='own', epochs=20)),
    'cifar10': ('cifar10', dict(size=32, stem='cifar', epochs=4)),
    'imagenette-no-pool': ('imagenette', dict(size=64, stem='no-pool', epochs=20))}
PRESET = 'improved-edges'      # its records call it improved, as it was called then
PRETRAININGS = {'imagenette': 3, 'cifar10': 1, 'imagenette-no-pool': 3}
FROZEN, LABELS = ('knn','linear'), (25, 100)
DRAWS = 3                      # of the labels, for the frozen probes
FIXED = dict(bs=64, steps=500, epochs=30, precision='bf16')
SEEDS = 3                      # of fine-tuning; the k-th meets the k-th pretraining

# The plan. What costs least comes first; fine-tuning with a search of the recipe comes last.
def whole(name, seeds): # of a trial
    steps = 'pretraining', 'frozen', 'finetune'
    return [('beside', name, None), *((what, name, k) for k in seeds for what in steps)]

PLAN = [*whole('imagenette', range(3)), *whole('cifar10', range(1)), ('searched', 'imagenette', 0),
        *whole('imagenette-no-pool', range(3)), ('searched', 'cifar10', 0),
        ('searched', 'imagenette-no-pool', 0)]

def config(name, seed=0):
    "The fields of a pretraining that are not the preset's."
    return dict(TRIALS[name][1], encoder='timm/resnet18', valid=0.02, seed=seed, precision='bf16')

@cache
def load(name):
    data, fields = TRIALS[name]
    return find_labelled(data, size=fields['size'])

def folder(runs, name, seed): return Path(runs)/f'resnet18-{name}-s{seed}'

def pretrain(name, seed, *, runs, end):
    "A finished pretraining, or None if time is up or somebody stopped it."
    place = folder(runs, name, seed)
    if run := _finished_run(place): return run
    left = (end-time.monotonic())/60
    if left <= 0: return None
    begun = (place/'config.json').exists()
    how = dict(resume=True) if begun else dict(preset=PRESET, **config(name, seed))
    run = train_gan(load(name).train_x, run_dir=place, max_minutes=min(left, 1e6),
                    progress=False, **how)
    return None if run.stopped else run

def jobs_of(what, name, seed, runs):
    "The probes of a row of the plan."
    like = get_preset(PRESET, **config(name))
    how = dict(like=like, size=like.size, recipes={'*': FIXED})
    stem = f', {like.stem} stem'
    if what == 'beside':
        arms = {'random weights'+stem: None, 'raw pixels': 'pixels'}
        return list_jobs(arms, load(name), FROZEN, LABELS, DRAWS, **how)
    made = [folder(runs, name, k) for k in range(PRETRAININGS[name])]
    if what == 'frozen':
        return list_jobs({'improved'+stem: made[seed]}, load(name), FROZEN, LABELS, DRAWS, **how)
    if what == 'finetune':
        arms = {'scratch'+stem: None, 'improved'+stem: made[seed]}
        seeds = [seed] if PRETRAININGS[name] > 1 else list(range(SEEDS))
        return list_jobs(arms, load(name), 'finetune', LABELS, seeds, search=False, **how)
    return list_jobs({'scratch'+stem: None, 'improved'+stem: made}, load(name), 'finetune',
                     LABELS, SEEDS, search=25, matched=len(made) > 1, **how)

def known(out): # pretrainings that are recorded
    return {(r['set'], r['seed']) for r in read_jsonl(out) if r.get('kind') == 'pretraining'}

def work(out, *, runs, end, plan):
    "Do what is not done, until the time is up; says whether all is done."
    for what,name,seed in plan:
        if what == 'pretraining':
            run = pretrain(name, seed, runs=runs, end=end)
            if run is None: return False
            if (name, seed) in known(out): continue
            record = describe_pretraining(run, 'improved')
            append_jsonl(out, dict(record, set=name, data=load(name).name, photos='all '
                f'{len(load(name).train_x):,} training photos, without labels'))
            say(f'{run.dir.name}: {run.say_score()}')
            continue
        for job in jobs_of(what, name, seed, runs):
            if time.monotonic() > end: return False
            r, = run_jobs([job], out=out, progress=False)
            found = r['score'] if r['kind'] == 'recipe' else r['test_accuracy']
            say(f"{job}: {found:.1%} ({r['seconds']:.0f} s)")
    return True

def say(text): print(time.strftime('%H:%M'), text, flush=True)

def show(out):
    "A line for each row of the plan: how many of its results are recorded."
    rows = [r for r in read_jsonl(out) if 'job' in r]
    for what,name,seed in PLAN:
        stem, data = f", {TRIALS[name][1]['stem']} stem", TRIALS[name][0]
        own = [r for r in rows if r['job']['data'].split()[0] == data
               and r['job']['arm'].endswith((stem, 'pixels'))]
        if what == 'pretraining': n = int((name, seed) in known(out))
        elif what == 'beside': n = sum(r['job']['arm'].startswith('ra') for r in own)
        elif what == 'frozen':
            n = sum(r['job']['mode'] in FROZEN and r['source'].get('seed') == seed for r in own)
        else:
            some = [r for r in own if r['job']['mode'] == 'finetune'
                    and ('search' in dict(r['job']['settings'])) == (what == 'searched')]
            every = what == 'searched' or PRETRAININGS[name] == 1
            n = sum(every or r['job']['seed'] == seed for r in some)
        where = name if seed is None else f'{name} {seed}'
        print(f"{where:<24}{what:<14}" + (f'{n} results' if n else 'to do'))

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--list', action='store_true', help='show what is done and what is to do')
    p.add_argument('--minutes', type=float, default=math.inf, help='stop after so many')
    p.add_argument('--sets', nargs='*', help='only these')
    p.add_argument('--runs', default=Path(tempfile.gettempdir())/'recon_nb_backbone',
                   help='the folder of the pretrainings')
    p.add_argument('--out', help='the file of records (nbs/results/backbone.jsonl)')
    a = p.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    out = a.out or Path(__file__).parents[1]/'nbs/results/backbone.jsonl'
    for n in a.sets or (): check_name(n, TRIALS, 'trial')
    plan = [row for row in PLAN if not a.sets or row[1] in a.sets]
    if a.list: return show(out)
    end = time.monotonic() + 60*a.minutes
    if not work(out, runs=a.runs, end=end, plan=plan): sys.exit(3)

if __name__ == '__main__': main()
