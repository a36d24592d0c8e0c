"""Does a pretrained encoder help to find things? A first answer on VOC2012's animals.

    RECON_NB_DATA=... python benchmarks/detection.py --list
    RECON_NB_DATA=... python benchmarks/detection.py --runs runs/detection --minutes 60
    python benchmarks/detection.py --toy                  # tries the script itself on drawn objects

The preset `improved` learns at 64 px from VOC's training photos, without their boxes. Then the
detection probe asks at 128 px about cats, dogs, horses, cows and sheep, with 100 photos or all:
the encoder frozen and trained, the same network from random weights in both ways, and the pixels.
Each searches its own rate on development photos, and has three draws of photos. The test photos
(VOC's val) are seen by nobody.

A question is answered in one piece, and its records are appended as soon as they are there; what
is recorded is not asked again. The pretraining goes on from its last checkpoint."""
import argparse, math, os, sys, tempfile, time
from functools import cache
from pathlib import Path
import torch
from recon_nb.boxed import load_detection
from recon_nb.core import append_jsonl, read_jsonl
from recon_nb.detection import detect_recipe, probe_detect
from recon_nb.experiments import _locked_records
from recon_nb.run import GANRun
from recon_nb.training import train_gan

ANIMALS = 'cat', 'dog', 'horse', 'cow', 'sheep'
ARMS = [('pixels', 'frozen'), ('random', 'frozen'), ('improved', 'frozen'),
        ('scratch', 'finetune'), ('improved', 'finetune')]
FULL = dict(size=128, seeds=3, photos=(100, None), recipe={},
            pretraining=dict(size=64, width=32, epochs=30))
TOY = dict(size=32, seeds=1, photos=(20, None), recipe=dict(steps=4, epochs=1),
           pretraining=dict(size=32, width=4, epochs=1))

@cache
def boxes(toy):
    "The set that is asked about."
    if toy: return load_detection('objects', size=TOY['size'])
    root = Path(os.environ['RECON_NB_DATA']).expanduser()/'voc2012_short240'
    return load_detection('voc2012', size=FULL['size'], root=root, classes=ANIMALS,
                          name='voc2012 (animals)')

def pretrain(a, end):
    "The finished pretraining, or None if time is up or somebody stopped it."
    how, folder = (TOY if a.toy else FULL)['pretraining'], Path(a.runs)/f'improved-s{a.seed}'
    if (folder/'config.json').exists():
        if GANRun.load(folder).finished: return GANRun.load(folder)
        how = dict(resume=True)
    else: how = dict(preset='improved', seed=a.seed, **how)
    if (left := (end-time.monotonic())/60) <= 0: return None
    where = {} if a.toy else dict(root=Path(os.environ['RECON_NB_DATA'])/'voc2012_short240')
    run = train_gan(boxes(True).train_x if a.toy else 'voc2012', run_dir=folder, progress=False,
                    max_minutes=min(left, 1e6), **where, **how)
    return None if run.stopped else GANRun.load(folder)

def questions(a):
    "What is asked: (arm, mode, photos)."
    return [(*arm, n) for n in (TOY if a.toy else FULL)['photos'] for arm in ARMS]

def ask(a, run, arm, mode, photos):
    "The records of one question, one a seed."
    p = TOY if a.toy else FULL
    encoder, like = {'improved': (run, None), 'pixels': ('pixels', None)}.get(arm, (None, run))
    found = probe_detect(encoder, boxes(a.toy), mode=mode, photos=photos, like=like, size=p['size'],
                         seeds=p['seeds'], recipe=detect_recipe(**p['recipe']), device=a.device,
                         progress=False)
    print(f"{time.strftime('%H:%M')} {arm}: {found}", flush=True)
    return [dict(name=arm, pretraining=a.seed, **r) for r in found.records()]

def key(r): return r['name'], r['mode'], r['photos'], r['pretraining']

def answers(out):
    "Question -> seed -> its record; of equal ones the last."
    found = {}
    for r in read_jsonl(out): found.setdefault(key(r), {})[r['seed']] = r
    return found

def work(a, out, end):
    "Ask what is not answered yet, until the time is up; says whether all is."
    done, seeds = answers(out), (TOY if a.toy else FULL)['seeds']
    todo = [q for q in questions(a) if len(done.get((*q, a.seed), ())) < seeds]
    run = pretrain(a, end) if todo else None
    if todo and run is None: return False
    for q in todo:
        if time.monotonic() > end: return False
        for r in ask(a, run, *q): append_jsonl(out, r)
    return True

def show(a, out):
    "A line for each question."
    done = answers(out)
    for q in questions(a):
        rows = done.get((*q, a.seed), {}).values()
        score = sum(r['test_map50'] for r in rows)/max(1, len(rows))
        said = f'mAP@0.5 {score:.1%} (n={len(rows)})' if rows else 'to do'
        print(f"{q[0]:10}{q[1]:10}{q[2] or 'all':>5} photos   {said}")

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--list', action='store_true', help='show what is done and what is to do')
    p.add_argument('--minutes', type=float, default=math.inf, help='stop after so many')
    p.add_argument('--seed', type=int, default=0, help='of the pretraining')
    p.add_argument('--toy', action='store_true', help='drawn objects, a minute: tries the script')
    p.add_argument('--device', default='cpu', help='where to compute')
    p.add_argument('--runs', default=Path(tempfile.gettempdir())/'recon_nb_detection',
                   help='the folder of the pretrainings')
    p.add_argument('--out', help='the file of records (nbs/results/detection.jsonl)')
    a = p.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    if a.toy: a.runs = Path(a.runs)/'toy'
    results = Path(__file__).parents[1]/'nbs/results'
    out = Path(a.out or (a.runs/'detection.jsonl' if a.toy else results/'detection.jsonl'))
    if a.list: return show(a, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked_records(out) as out:
        if not work(a, out, time.monotonic()+60*a.minutes): sys.exit(3)

if __name__ == '__main__': main()
