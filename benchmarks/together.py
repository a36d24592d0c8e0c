"""Small networks leave most of a GPU idle: here many processes share one.

    python benchmarks/together.py --data FOLDER --list          # what is recorded
    python benchmarks/together.py --data FOLDER --processes 14 --minutes 8
    python benchmarks/together.py --data FOLDER --device cpu --processes 1 --minutes 60
    python benchmarks/together.py --data FOLDER --toy           # tries the script itself

The plans are protocols (`recon_nb.protocols`), in the order of their worth. Its probes wait for a
plan's pretrainings, a fine-tuning for the search of its recipe; what is ready goes to the next free
process. Each record is appended to OUT/<plan>.jsonl as soon as it is there, in the library's own
form; what is recorded is not run again. When the minutes are over, what still runs is stopped, and
the same command goes on."""
import os

if __name__ in ('__main__', '__mp_main__'):
    os.environ |= dict(TQDM_DISABLE='1', OMP_NUM_THREADS='1')    # a core for each process
import argparse, hashlib, heapq, json, multiprocessing, sys, threading, time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count, product
from pathlib import Path

import torch
from recon_nb.advice import _CHEAP, _TARGETS, advise
from recon_nb.core import (InputError, append_jsonl, check_name, describe_machine, duration,
                           read_jsonl)
from recon_nb.cost import describe_pretraining
from recon_nb.experiments import (_by_key, _Trials, _in_order, _locked_records, _run_job,
                                  _set_fingerprint)
from recon_nb.protocols import (PROTOCOLS, Block, Protocol, _config, _is_done, _jobs, _root_of,
                                _train, find_labelled, narrow, photos_of, run_folder)

# Folders in --data, from benchmarks/animals.py: photos without labels, the same ones, whole or cut
SCENES, INSTANCES = 'scenes', 'instances'
MIXED = {'mixed-0': SCENES, 'mixed-1': 'mixed-1', 'mixed-10': 'mixed-10'}     # from mixed.py


# The plans

SMALL = dict(width=32, bs=128, pretrainings=3, like='improved', fields=dict(valid=.02))
RECIPES = {'*': dict(bs=64), 'svhn': dict(flip=False)}
LONG = dict(epochs=315)                        # 63 passes, as in improved.jsonl, times five
TRANSFER = Protocol(                           # photos of one kind, labels of another
    'transfer', **SMALL, photos=SCENES, recipes=RECIPES,
    sizes=dict(cifar10=32, svhn=32, imagenette=32),
    arms={'edges': ('improved-edges', dict(epochs=63)), 'hues': ('improved', dict(epochs=63)),
          'edges, five times as long': ('improved-edges', LONG),
          'hues, a fifth as long': ('improved', dict(epochs=13)),
          'hues, five times as long': ('improved', LONG),
          'hues, five times, crops': ('improved', LONG | dict(store=64, scale=.35))},
    blocks=(Block(('knn', 'linear'), (25, 100), 5),
            Block(('finetune',), (25, 100), 3, sets=('cifar10',), search=100, matched=True)))

MIXES = {name: replace(                        # how few of the target's own photos does it take?
    TRANSFER, name=name, photos=folder, sizes=dict(cifar10=32), arms={'hues': 'improved'},
    updates=1500, blocks=TRANSFER.blocks[:1]) for name, folder in MIXED.items()}

ANIMALS = replace(PROTOCOLS['four-sets'], name='animals', sizes=dict(animals=32))   # a fifth set

# One instance a picture, against whole scenes: the same photos, as many updates
ONE = Protocol('instances', **SMALL | dict(bs=64), photos=INSTANCES, updates=1000, recipes=RECIPES,
               sizes=dict(animals=32, cifar10=32, imagenette=32),
               arms={'hues': 'improved',
                     'pixels': ('improved-edges', dict(target='pixels', width_dec=16))},
               blocks=(Block(('knn', 'linear'), (25, 100), 5),))
WHOLE = replace(ONE, name='scenes', photos=SCENES)

SEEN = {'a third': 1/3, 'six tenths': .6, 'nine tenths': .9}   # of the side


def see(name, view, mask, target='pixels'):
    "An arm for each share of the side that the generator sees."
    how = dict(view=view, mask=mask, target=target)
    return {f'{name}, {words}': ('improved-edges', how | dict(visible=v))
            for words, v in SEEN.items()}


INPUTS = Protocol(                             # the paper's last page: larger inputs
    'larger-inputs', **SMALL | dict(bs=64, fields=dict(valid=.02, width_dec=16)), photos='own',
    updates=800, sizes=dict(cifar10=32, imagenette=32),
    arms=see('zoomed', 'zoom', 'centre') | see('window', 'canvas', 'window')
    | see('window, edges', 'canvas', 'window', 'gradients')
    | {f'window, {name}': ('improved-edges', dict(
        view='canvas', mask='window', target='pixels', visible_from=first, visible=last) | more)
       for name, first, last, more in (
           ('from nine tenths to a third', .9, 1/3, {}),
           ('from a third to nine tenths', 1/3, .9, {}),
           ('another share for each photo', 1/3, .9, dict(visible_mixed=True)))},
    blocks=(Block(('knn', 'linear'), (25, 100), 3),))

ADVICE = 'advice'                            # may stand among --plans: `recon-advise` on these sets
ADVISED = 'cifar10', 'svhn', 'imagenette', 'flowers128', 'animals', 'shapes', 'tints'
FULL = replace(PROTOCOLS['four-sets'], name='advised', sizes=dict.fromkeys(ADVISED, 32),
               pretrainings=1, arms={t: ('improved', dict(target=t)) for t in _TARGETS},
               blocks=(Block(('linear',), (100,), 5),))           # was it the best target?

PLANS = {p.name: p for p in (PROTOCOLS['four-sets'], ANIMALS, TRANSFER, *MIXES.values(), INPUTS,
                             ONE, WHOLE, FULL)}


def resolve(p, data, toy):
    "A plan with the folder of its photos, or at toy size."
    if p.photos in (INSTANCES, *MIXED.values()): p = replace(p, photos=str(data/p.photos))
    if not toy: return p
    arms = {k: ((v, {}) if isinstance(v, str) else v) for k, v in list(p.arms.items())[:2]}
    arms = {k: (preset, {f: x for f, x in changes.items() if f != 'epochs'})
            for k, (preset, changes) in arms.items()}
    blocks = tuple(replace(b, labels=(5,), seeds=1, search=b.search and 5) for b in p.blocks)
    return replace(p, width=8, bs=64, pretrainings=1, updates=3, arms=arms, blocks=blocks,
                   sizes=dict(list(p.sizes.items())[-1:]), recipes={'*': dict(steps=2, epochs=1)})


# In a process of the pool

MET = {}                                       # plans and device, as this process was told


def begin(device):
    "One thread: as many processes as cores do the rest."
    torch.set_num_threads(1)
    MET['device'] = device
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


def end_with(parent):
    "End this process when the one that began it is gone: its run folder is free then."
    while os.getppid() == parent: time.sleep(1)
    os._exit(1)


def quietly(f, log, *args):
    "Call f; what it prints goes to a file of this process."
    with open(f'{log}-{os.getpid()}.log', 'a') as to, redirect_stdout(to), redirect_stderr(to):
        return f(*args)


def folder_of(p, runs, data, row, seed):
    "A plan's runs lie in a folder of its own: two plans may call a row the same."
    return run_folder(p, runs/p.name, row, data=data, seed=seed)


def run_training(p, runs, data, row, seed, root):
    "Train a run, or go on with it; returns its record."
    if data == 'shapes':                       # it has a held-out part of its own
        p = replace(p, fields={k: v for k, v in p.fields.items() if k != 'valid'})
    folder, cfg = folder_of(p, runs, data, row, seed), _config(p, row, data, seed)
    if not _is_done(p, folder, cfg):
        where = _root_of(data, root) if p.photos == 'own' else root
        _train(p, folder, cfg, photos_of(p, data, root), where, MET['device'])
    record = describe_pretraining(folder, row)
    if p.photos == 'own': record |= dict(data=data)
    return record | dict(gpu=torch.cuda.get_device_name() if MET['device'] == 'cuda' else None)


def run_advice(name, updates, runs, root):
    "What `recon-advise` says of a set; returns a record."
    there = name != 'shapes'
    how, begun = dict(flip=False) if name == 'svhn' else {}, time.monotonic()
    a = advise(str(root/name/'train') if there else name, str(root/name) if there else name,
               updates=updates, device=MET['device'], out=runs/f'advice-{name}-{updates}',
               progress=False, **how)
    return dict(schema=1, kind='advice', data=name, updates=updates, width=32, **_CHEAP,
                target=a.target, sure=a.sure, worth=a.worth, says=a.sentence,
                table=a.table.to_dict('records'), rows=list(a.table.index),
                seconds=round(time.monotonic()-begun),
                machine=describe_machine())


@cache
def open_set(name, size, root): return find_labelled(name, size=size, root=root)


@cache
def find_jobs(plan, runs, data, root):
    "Key -> job, for all jobs of a plan on a set; and the set's fingerprint."
    p = MET[plan]
    s = open_set(data, p.sizes[data], root)
    of = {(row, data): [folder_of(p, runs, data, row, k) for k in MET[plan, 'seeds']]
          for row in p.arms}
    jobs = _in_order([j for b in p.blocks for j in _jobs(p, b, of, {data: s})])
    return {j.key: j for j in jobs}, _set_fingerprint(s)


def meet(p, seeds):
    "Tell this process of a plan, and which of its pretrainings are asked about."
    MET[p.name], MET[p.name, 'seeds'] = p, seeds


def list_keys(p, runs, data, root, seeds):
    "Of each job: its key, the key of the search it waits for, and whether it is quick."
    meet(p, seeds)
    jobs, _ = find_jobs(p.name, runs, data, root)
    return [(k, j.search and j.search.key, j.kind, str(j)) for k, j in jobs.items()]


def run_probe(p, runs, data, root, seeds, key, found):
    "A probe or a search; returns its record."
    meet(p, seeds)
    jobs, images = find_jobs(p.name, runs, data, root)
    j = jobs[key]
    done = {j.search.key: found} if j.search else {}
    name = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
    tried = partial(_Trials, j, images, runs/f'trials-{name}.jsonl')    # a stopped search goes on
    return dict(_run_job(j, done, MET['device'], tried), images=images)


# In the process that hands out

@dataclass(order=True)
class Task:
    "What can be handed out; the smaller is handed out first."
    rank: tuple
    name: str = field(compare=False)
    plan: str = field(compare=False)
    call: tuple = field(compare=False)         # a function of this file, and its arguments
    then: object = field(compare=False, default=None)          # called with what it returned


class Desk:
    "What is ready, what waits, what is recorded."
    def __init__(self, plans, runs, root, out, advised=(), seeds=None):
        self.plans, self.runs, self.root, self.out, self.some = plans, runs, root, out, seeds
        self.ready, self.waiting, self.order, self.failed = [], {}, count(), []
        self.done = {p: read_jsonl(out/f'{p}.jsonl') for p in (*plans, 'advice')}
        self.ask_advice(len(plans), advised)
        for i, p in enumerate(plans.values()):
            shared = p.photos != 'own'         # one pretraining for all sets
            for data in list(p.sizes)[:1] if shared else p.sizes:
                left = {(row, seed) for row in p.arms for seed in self.seeds(p)}
                sets = list(p.sizes) if shared else [data]
                for row, seed in sorted(left):
                    self.put((i, 0, seed), f'pretraining {data} {row} {seed}', p.name,
                             (run_training, p, runs, data, row, seed, root),
                             partial(self.trained, p, i, sets, left, (row, seed)))

    def seeds(self, p): return self.some or tuple(range(p.pretrainings))

    def ask_advice(self, i, names):
        "As many updates as one core manages in ten minutes, and half of that."
        known = [(r['data'], r['updates']) for r in read_jsonl(self.out/'advice.jsonl')]
        for updates, name in product((900, 450), names):
            if (name, updates) in known: continue
            self.put((i, 3), f'advice {name} {updates}', 'advice',
                     (run_advice, name, updates, self.runs, self.root),
                     partial(self.keep, 'advice'))

    def put(self, rank, name, plan, call, then=None):
        heapq.heappush(self.ready, Task((*rank, next(self.order)), name, plan, call, then))

    def keep(self, plan, record):
        append_jsonl(self.out/f'{plan}.jsonl', record)
        self.done[plan].append(json.loads(json.dumps(record)))

    def trained(self, p, i, sets, left, which, record):
        who = [(r['row'], r['seed'], r.get('data')) for r in self.done[p.name] if 'row' in r]
        if (record['row'], record['seed'], record.get('data')) not in who: self.keep(p.name, record)
        left.discard(which)
        if left: return
        for data in sets:
            call = list_keys, p, self.runs, data, self.root, self.seeds(p)
            self.put((i, 1), f'list {data}', p.name, call,
                     partial(self.listed, p, i, data))

    def listed(self, p, i, data, keys):
        known = _by_key(r for r in self.done[p.name] if 'trial_of' not in r)
        for key, search, kind, name in keys:
            if key in known: continue
            place = dict(rank=(i, 1 if kind == 'recipe' else 2), name=name, plan=p.name)
            how = partial(self.put_probe, p, data, key, kind, place)
            if not search or search in known: how(known.get(search))
            else: self.waiting.setdefault((p.name, search), []).append(how)

    def put_probe(self, p, data, key, kind, place, found):
        def then(record):
            self.keep(p.name, record)
            for how in self.waiting.pop((p.name, key), []): how(record)
        call = run_probe, p, self.runs, data, self.root, self.seeds(p), key, found
        self.put(**place, call=call, then=then)


def work(desk, device, processes, end):
    "Hand out until nothing is left or the time is over."
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(processes, context, initializer=begin, initargs=(device,))
    busy, start, n = {}, time.monotonic(), 0
    while (desk.ready or busy) and time.monotonic() < end:
        while desk.ready and len(busy) < processes:
            t = heapq.heappop(desk.ready)
            f, *args = t.call
            busy[pool.submit(quietly, f, desk.runs/'said', *args)] = t, time.monotonic()
        ended, _ = wait(busy, timeout=max(0, end-time.monotonic()), return_when=FIRST_COMPLETED)
        for future in ended:
            t, since = busy.pop(future)
            n += 1
            took = f'{time.monotonic()-start:5.0f} s  {time.monotonic()-since:5.1f} s'
            try: value = future.result()
            except Exception as e:
                desk.failed.append(t.name)
                says = f'failed: {type(e).__name__}: {e}'[:400]
                print(f'{took}  {t.plan}: {t.name} {says}', flush=True)
                continue
            t.then(value)
            if t.call[0] is not list_keys: print(f'{took}  {t.plan}: {t.name}', flush=True)
    for p in list((getattr(pool, '_processes', None) or {}).values()): p.kill()    # resumable
    waits = sum(map(len, desk.waiting.values()))
    print(f'{n} done, {len(desk.failed)} failed, {len(busy)} stopped, {len(desk.ready)} ready, '
          f'{waits} waiting for a search', flush=True)
    return int(bool(desk.failed))


def only(plans, given, of, what, cut, also=()):
    "Plans that have some of these names, cut to them. Raises `InputError` if none has one."
    there = [*dict.fromkeys([*(k for p in plans.values() for k in of(p)), *also])]
    for name in given: check_name(name, there, f'{what} of these plans')
    has = {n: [k for k in of(p) if k in given] for n, p in plans.items()}
    return {n: cut(p, has[n]) for n, p in plans.items() if has[n]}


def only_some(plans, a):
    "The plans, or parts of them, that were asked for."
    if a.sets:
        cut_sets = lambda p, some: replace(p, sizes={k: p.sizes[k] for k in some})
        plans = only(plans, a.sets, lambda p: p.sizes, 'set', cut_sets,
                     also=ADVISED if ADVICE in a.plans else ())
    if a.rows: plans = only(plans, a.rows, lambda p: p.arms, 'row', lambda p, k: narrow(p, arms=k))
    if a.modes:
        modes = lambda p: dict.fromkeys(m for b in p.blocks for m in b.modes)
        plans = only(plans, a.modes, modes, 'mode', lambda p, k: narrow(p, modes=k))
    return plans


def in_precision(p, precision):
    "The plan, pretrained and fine-tuned in it."
    return replace(narrow(p, precision=precision), fields=p.fields | dict(precision=precision))


def check_seeds(p, seeds):
    "Can these pretrainings be asked about alone? Raises `InputError`."
    if any(b.matched for b in p.blocks):
        raise InputError(f"{p.name} pairs each pretraining with a seed of its own and searches its "
                         "recipes on the first: it is run whole, without --seeds.")
    if wrong := [k for k in seeds if not 0 <= k < p.pretrainings]:
        raise InputError(f'{p.name} has pretrainings 0 to {p.pretrainings-1}, not {wrong[0]}.')


def who_is_advised(a):
    "The sets that `recon-advise` is asked about: none, unless `advice` is among the plans."
    asked = ADVISED if ADVICE in a.plans and not a.toy else ()
    return [n for n in asked if not a.sets or n in a.sets]


def main(argv=None):
    "0 if nothing failed, 1 if something did, 2 for a wrong call."
    p = argparse.ArgumentParser('together.py', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=os.environ.get('RECON_NB_DATA'))
    p.add_argument('--out', type=Path, default=Path('runs/together'))
    p.add_argument('--runs', type=Path, help='the run folders; OUT/runs if not given')
    p.add_argument('--plans', nargs='+', default=[*PLANS, ADVICE],
                   help=f"of {', '.join([*PLANS, ADVICE])}")
    p.add_argument('--sets', nargs='+', help='only these; all if not given')
    p.add_argument('--rows', nargs='+', help='only these pretrained rows; all if not given')
    p.add_argument('--modes', nargs='+', help='only these ways of probing; all if not given')
    p.add_argument('--precision', choices=('bf16',), help='of pretraining and of fine-tuning')
    p.add_argument('--seeds', nargs='+', type=int,
                   help='of the pretrainings, for a plan of frozen probes; all if not given')
    p.add_argument('--processes', type=int, default=max(1, (os.cpu_count() or 2)-2))
    p.add_argument('--minutes', type=float, default=8)
    p.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    p.add_argument('--toy', action='store_true', help='all tiny, on a CPU')
    p.add_argument('--list', action='store_true', help='only say what is recorded')
    a = p.parse_args(argv)
    try:
        if a.data is None: raise InputError('--data is not given, and RECON_NB_DATA is not set.')
        for n in a.plans: check_name(n, [*PLANS, ADVICE], 'plan')
        plans = {n: resolve(PLANS[n], a.data, a.toy) for n in a.plans if n != ADVICE}
        plans = only_some(plans, a)
        if a.precision: plans = {n: in_precision(q, a.precision) for n, q in plans.items()}
        for q in plans.values() if a.seeds else (): check_seeds(q, a.seeds)
        if a.list:
            for n in (*plans, 'advice'):
                print(f"{n}: {len(read_jsonl(a.out/f'{n}.jsonl'))} records")
            return 0
        end, runs = time.monotonic()+60*a.minutes, a.runs or a.out/'runs'
        runs.mkdir(parents=True, exist_ok=True)
        with _locked_records(a.out/'together.jsonl'):
            for q in plans.values():           # read once, before all processes ask for it
                for data, size in q.sizes.items(): find_labelled(data, size=size, root=a.data)
            print(f'sets read: {duration(60*a.minutes-(end-time.monotonic()))}', flush=True)
            desk = Desk(plans, runs, a.data, a.out, who_is_advised(a), a.seeds)
            return work(desk, 'cpu' if a.toy else a.device, a.processes, end)
    except InputError as e:
        print(f'together.py: {e}', file=sys.stderr)
        return 2


if __name__ == '__main__': sys.exit(main())
