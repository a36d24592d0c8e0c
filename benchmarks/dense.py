"""Does a pretrained encoder help to find and to outline things? On VOC2012's animals.

    RECON_NB_DATA=... python benchmarks/dense.py --list
    RECON_NB_DATA=... python benchmarks/dense.py --runs runs/dense --minutes 60
    python benchmarks/dense.py --toy                      # tries the script itself on drawn objects

The preset `improved` learns, three times, from VOC's training photos, without boxes and masks. Then
the probes of detection and segmentation ask about cats, dogs, horses, cows and sheep: the encoder
frozen and trained, the same network from random weights in both ways, and the pixels. Each searches
its learning rate on development photos; pretrainings 1 and 2 take the rate that was found with
pretraining 0. What is fine-tuned with all photos is also trained twice as long, at the rate it has.
Frozen, each pretraining has three draws of photos, heads and orders; fine-tuned, the k-th has the
k-th draw. The test photos (VOC's val) are seen by nobody.

A question is answered in one piece, and its records are appended as soon as they are there; what is
recorded is not asked again. A pretraining goes on from its last checkpoint. `--only controls` and
`--only 0`, `1` or `2`, each with an --out of its own, are parts for several processes; 1 and 2 need
the records of 0 (`--rates`)."""
import argparse, math, os, sys, tempfile, time
from functools import cache
from pathlib import Path
import torch
from recon_nb.boxed import load_detection
from recon_nb.config import get_preset
from recon_nb.core import append_jsonl, read_jsonl
from recon_nb.cost import describe_pretraining
from recon_nb.detection import detect_recipe, probe_detect
from recon_nb.experiments import _locked_records
from recon_nb.segmented import load_segmentation
from recon_nb.run import GANRun, _finished_run
from recon_nb.segmentation import dense_recipe, probe_dense
from recon_nb.training import train_gan

ANIMALS = 'cat', 'dog', 'horse', 'cow', 'sheep'
LONGER = ', twice as long'                     # behind an arm's name: do more updates help?
RECORDS = 'detection_and_segmentation.jsonl'
SCORES = dict(detection='test_map50', segmentation='test_miou')
FULL = dict(size=64, draws=3, few=100, recipes=dict(detection=dict(steps=1000, epochs=0),
                                                    segmentation=dict(steps=600, epochs=0)),
            pretrainings=3, pretraining=dict(size=64, width=32, epochs=60))
TOY = dict(size=32, draws=2, few=20, recipes=dict.fromkeys(SCORES, dict(steps=4, epochs=0)),
           pretrainings=2, pretraining=dict(size=32, width=4, epochs=1))


@cache
def photos_of(task, toy):
    "The set that is asked about."
    how = dict(classes=ANIMALS, name='voc2012 (animals)')
    load = dict(detection=load_detection, segmentation=load_segmentation)[task]
    if toy: return load(dict(detection='objects', segmentation='collages')[task], size=TOY['size'])
    return load('voc2012', size=FULL['size'], root=home(), **how)


def home(): return Path(os.environ['RECON_NB_DATA']).expanduser()/'voc2012_short240'


def questions(p, who):
    "What is asked of the controls or of a pretraining: (task, arm, mode, photos)."
    arms = ([('pixels', True), ('random', True), ('scratch', False)] if who == 'controls'
            else [('improved', True), ('improved', False)])
    def mode(task, still):
        return 'finetune' if not still else dict(detection='frozen', segmentation='linear')[task]
    asked = [(task, arm, mode(task, still), n)
             for n in (None, p['few']) for task in SCORES for arm, still in arms
             if still or n is None or task == 'detection']       # not asked, to save an hour
    return asked + [(task, arm+LONGER, 'finetune', None)
                    for task in SCORES for arm, still in arms if not still]


def pretrain(a, p, seed, end):
    "The finished pretraining, or None if time is up or somebody stopped it."
    how, folder = p['pretraining'], Path(a.runs)/f'improved-s{seed}'
    if run := _finished_run(folder): return run
    begun = (folder/'config.json').exists()
    how = dict(resume=True) if begun else dict(preset='improved', seed=seed, **how)
    if (left := (end-time.monotonic())/60) <= 0: return None
    data = photos_of('detection', True).train_x if a.toy else 'voc2012'
    run = train_gan(data, run_dir=folder, progress=False, max_minutes=min(left, 1e6),
                    **({} if a.toy else dict(root=home())), **how)
    return None if run.stopped else GANRun.load(folder)


def rate_of(a, asked):
    "The learning rate of an earlier question."
    for out in (a.out, *a.rates):
        for r in read_jsonl(out):
            if key(r) == asked: return r['config']['lr']
    task, arm, mode, photos, who = asked
    sys.exit(f'no record of {task}, {arm}, {mode}, {photos or "all"} photos: run '
             f'--only {"controls" if who is None else who} first, or name its file with --rates.')


def ask(a, p, q, who, encoder):
    "The records of one question, one a draw."
    task, arm, mode, photos = q
    probe, recipe = dict(detection=(probe_detect, detect_recipe),
                         segmentation=(probe_dense, dense_recipe))[task]
    changes, search = dict(p['recipes'][task]), False
    if arm.endswith(LONGER):
        first = None if who == 'controls' else 0
        rate = rate_of(a, (task, arm.removesuffix(LONGER), mode, photos, first))
        changes |= dict(lr=rate, steps=2*changes['steps'])
    elif who in ('controls', 0): search = True
    else: changes['lr'] = rate_of(a, (*q, 0))
    draws = [who] if mode == 'finetune' and who != 'controls' else range(p['draws'])
    size, width = (p['pretraining'][k] for k in ('size', 'width'))
    like = None if encoder else get_preset('improved', size=size, width=width)
    found = probe(encoder, photos_of(task, a.toy), mode=mode, photos=photos, like=like,
                  seeds=list(draws), recipe=recipe(**changes), search=search, device=a.device,
                  size=p['size'], progress=False)
    print(f"{time.strftime('%H:%M')} {task}, {arm}: {found}", flush=True)
    return [dict(name=arm, pretraining=None if who == 'controls' else who, **r)
            for r in found.records()]


def key(r):
    "What a record answers; of a pretraining, what it is."
    if 'task' not in r: return r['kind'], r['seed']
    return r['task'], r['name'], r['mode'], r['photos'], r['pretraining']


def work(a, p, who, end):
    "Ask what is not answered yet, until the time is up; says whether all is."
    done = {key(r) for r in read_jsonl(a.out)}
    pretraining = None if who == 'controls' else who
    todo = [q for q in questions(p, who) if (*q, pretraining) not in done]
    if not todo: return True
    run = None
    if who != 'controls':
        if (run := pretrain(a, p, who, end)) is None: return False
        if ('pretraining', who) not in done:
            append_jsonl(a.out, describe_pretraining(Path(a.runs)/f'improved-s{who}', 'improved'))
    for q in todo:
        if time.monotonic() > end: return False
        for r in ask(a, p, q, who, run or ('pixels' if q[1] == 'pixels' else None)):
            append_jsonl(a.out, r)
    return True


def show(a, p):
    "A line for each question."
    rows = read_jsonl(a.out)
    for who in ('controls', *range(p['pretrainings'])):
        for q in questions(p, who):
            some = [r[SCORES[q[0]]] for r in rows
                    if key(r) == (*q, None if who == 'controls' else who)]
            said = f'{sum(some)/len(some):.1%} (n={len(some)})' if some else 'to do'
            print(f"{who!s:9}{q[0]:13}{q[1]:25}{q[2]:9}{q[3] or 'all':>5} photos   {said}")


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--list', action='store_true', help='show what is done and what is to do')
    p.add_argument('--minutes', type=float, default=math.inf, help='stop after so many')
    p.add_argument('--only', choices=('controls', '0', '1', '2'), help='one part; all if not given')
    p.add_argument('--rates', nargs='*', default=[], help='files with the records of pretraining 0')
    p.add_argument('--toy', action='store_true', help='drawn objects, a minute: tries the script')
    p.add_argument('--device', default='cpu', help='where to compute')
    p.add_argument('--runs', default=Path(tempfile.gettempdir())/'recon_nb_dense',
                   help='the folder of the pretrainings')
    p.add_argument('--out', help=f'the file of records (nbs/results/{RECORDS})')
    a = p.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    if a.toy: a.runs = Path(a.runs)/'toy'
    plan, results = TOY if a.toy else FULL, Path(__file__).parents[1]/'nbs/results'
    a.out = Path(a.out or (a.runs/'dense.jsonl' if a.toy else results/RECORDS))
    if a.list: return show(a, plan)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    parts = [a.only if a.only == 'controls' else int(a.only)] if a.only else [
        'controls', *range(plan['pretrainings'])]
    end = time.monotonic()+60*a.minutes
    with _locked_records(a.out) as a.out:
        for who in parts:
            if not work(a, plan, who, end): sys.exit(3)


if __name__ == '__main__': main()
