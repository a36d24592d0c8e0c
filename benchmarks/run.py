"""How fast this package is, measured side by side: every row is a ratio of two things that take
turns in one run, so that a busy minute, or a slower machine, meets both.

`python benchmarks/run.py` measures all rows in under 20 minutes on two quiet cores. Each row
measured is a line of nbs/results/speed.jsonl. `--write` builds the table of benchmarks/README.md
from the newest line of each row."""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from recon_nb.core import (InputError, append_jsonl, check_name, describe_machine, read_jsonl,
                           write_atomic)

HERE = Path(__file__).resolve()
RECORDS = HERE.parents[1]/'nbs'/'results'/'speed.jsonl'
README = HERE.with_name('README.md')
BEGIN = '<!-- speed: built by `python benchmarks/run.py --write` -->'
END = '<!-- end of speed -->'

# why a row is under its floor, or short of its aim: written beside it, and never instead of it
REASONS = {
    'step-16': ("83 % of the step is oneDNN's convolutions, the same as in the textbook step; what "
                'can be left out, D\'s weight gradients in the move of G, is left out'),
    'step-64': "92 % of the step is oneDNN's convolutions, the same as in the textbook step",
    'flops-64': ('a processor with AVX2 and no AVX-512: two thirds of the time are the gradients '
                 'of convolutions, which oneDNN computes slower than a square product'),
    'flops-16': ('56 % of the time are gradients of convolutions, at 16 to 128 channels; the '
                 'element-wise layers take 12 %'),
    'large-photos': ('JPEGs are read with four times the pixels that even the zoomed cut needs, so '
                     'at half size; a quarter would give other pixels than earlier runs saw'),
    'first-zoom': 'each photo is also hashed, file and pixels, by which doubles are found',
    'first-canvas': ('each photo is also hashed, file and pixels, by which doubles are found: a '
                     'quarter of its time; decoding and resizing are the same code in both'),
    'two-processes': ('two processes that only multiply matrices manage 1.5 to 1.8 here: the two '
                      'cores share a memory bus, or a core'),
    'history-open': ('149 MB, on a core on which `json.loads` needs 7.1 s: a third is replacing '
                     'letters, a quarter translating bytes, a fifth pandas'),
    'listing': ("half of its time is each file's stat, as in the other; the rest is Python's: it "
                'walks, looks at suffixes and makes an entry for each photo'),
    'probe-linear': ('both spend their time in the same two matrix products, about as many'),
    'probe-knn': ('both need one product of all features, half of the time scikit-learn takes; it '
                  'runs as fast as the machine multiplies'),
}


class Row(NamedTuple):
    "One thing to measure beside another."
    name: str
    what: str            # what is measured
    against: str         # what it takes turns with
    unit: str            # of what is judged: x (a ratio), s, ms, MB, %
    floor: float | None  # what must be reached
    aim: float | None    # what is wanted
    less: bool           # is less better?
    measure: Callable    # (session) -> dict: ours, theirs, repeats, config; value, if no ratio


@dataclass
class Session:
    "One call of this script."
    quick: bool
    folder: Path         # for what the rows write; gone afterwards
    data: Path | None    # RECON_NB_DATA

    def pick(self, full, quick): return quick if self.quick else full


ROWS = {}


def row(name, what, against, *, unit='x', floor=None, aim=None, less=False):
    "Register a row. What it measures is the decorated function."
    def register(f):
        ROWS[name] = Row(name, what, against, unit, floor, aim, less, f)
        return f
    return register


# Clocks

def seconds_of(work):
    "Seconds of the wall's clock for one call."
    start = time.perf_counter()
    work()
    return time.perf_counter()-start


def cpu_seconds_of(work):
    "Seconds of this process' own computing: for works of one thread."
    start = time.process_time()
    work()
    return time.process_time()-start


def take_turns(*works, rounds, clock=seconds_of):
    "What each of some works takes, A B A B ...: a list for each. The first of them starts in turn."
    found = [[] for _ in works]
    for i in range(rounds):
        order = [*range(len(works))]
        for j in order[i % len(order):]+order[:i % len(order)]: found[j].append(clock(works[j]))
    return found


def side_by_side(ours, theirs, *, rounds, each=1, how=median, clock=seconds_of, **config):
    "A row's record of two works; `each` calls of both belong to one turn."
    def several(work):
        for _ in range(each): work()
    works = partial(several, ours), partial(several, theirs)
    a, b = (how(f)/each for f in take_turns(*works, rounds=rounds, clock=clock))
    kind = dict(clock='CPU seconds') if clock is cpu_seconds_of else {}
    return dict(ours=a, theirs=b, repeats=rounds, config=dict(config, calls=each, **kind))


def run_child(*words, env=None):
    "What a fresh Python prints, as JSON: its last line."
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True,
                          env=os.environ | (env or {}), cwd=HERE.parents[1])
    if done.returncode: raise RuntimeError(f'{words[:3]} failed: {done.stderr[-2000:]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


@contextmanager
def fresh_cache(s):
    "An empty cache of decoded photos; the caller's stays as it is."
    was = os.environ.get('RECON_NB_CACHE')
    with tempfile.TemporaryDirectory(dir=s.folder) as place:
        os.environ['RECON_NB_CACHE'] = place
        try: yield
        finally:
            del os.environ['RECON_NB_CACHE']
            if was is not None: os.environ['RECON_NB_CACHE'] = was


# The start

@row('start', '`from recon_nb import GANRun`, beyond `import torch`', '`import torch`', unit='s',
     floor=1.2, aim=.8, less=True)
def time_start(s):
    said = '\nimport time; print(time.process_time())'
    ours, theirs = take_turns('import torch\nfrom recon_nb import GANRun', 'import torch',
                              rounds=s.pick(7, 1), clock=lambda code: run_child('-c', code+said))
    return dict(ours=min(ours), theirs=min(theirs), value=min(ours)-min(theirs),
                repeats=len(ours), config=dict(clock='CPU seconds of a fresh process, the least'))


# The training step

def open_state(cfg, n=64):
    "A state at step 0 whose photos are drawn."
    from recon_nb.data import load_photos
    from recon_nb.shapes import draw_shapes
    from recon_nb.state import make_state
    from recon_nb.task import make_task
    drawn = draw_shapes(n, size=2*cfg.size)[0]
    photos = load_photos(drawn, size=cfg.size, cuts=make_task(cfg).cuts, progress=False)
    train = np.resize(np.arange(n-8), max(cfg.bs, n-8))
    return make_state(cfg, photos, train, np.arange(n-8, n))


def paper_config(s, width, bs, **more):
    "The paper's networks and losses; the photos are drawn."
    from recon_nb.config import get_preset
    small = dict(size=32, width=4, bs=8)
    return get_preset('paper-sb', **s.pick(dict(size=80, width=width, bs=bs), small), **more)


class Textbook:
    """DCGAN's step as textbooks have it, on the same networks and the same batch: photos, then
    pictures through D, a backward pass for each, G's backward pass through D with the gradients
    of D's weights, channels first, and Adam as PyTorch makes it."""
    def __init__(self, st, batch):
        from recon_nb.state import make_networks
        cfg = self.cfg = st.cfg
        nets = make_networks(cfg)
        for net, own in zip(nets, st.nets): net.load_state_dict(own.state_dict())
        self.gen, self.disc = (net.to(st.acc.device).train() for net in nets)
        how = dict(betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.wd)
        self.opt_g = torch.optim.Adam(self.gen.parameters(), cfg.lr_g, **how)
        self.opt_d = torch.optim.Adam(self.disc.parameters(), cfg.lr_d, **how)
        self.i_in, self.real = batch.i_in.contiguous(), batch.goals[0].contiguous()
        self.hidden = batch.asked[0].contiguous()
        self.ones = torch.ones(len(self.real), device=st.acc.device)
        self.zeros = torch.zeros_like(self.ones)

    def step(self):
        judge = torch.nn.functional.binary_cross_entropy_with_logits
        painted = self.gen(self.i_in)[0]
        fake = torch.where(self.hidden, painted, self.real)
        self.opt_d.zero_grad()
        on_real = judge(self.disc(self.real), self.ones)
        on_real.backward()
        on_fake = judge(self.disc(fake.detach()), self.zeros)
        on_fake.backward()
        self.opt_d.step()
        self.opt_g.zero_grad()
        loss_g = judge(self.disc(fake), self.ones)
        loss_g.backward()
        self.opt_g.step()
        return (on_real+on_fake).item(), loss_g.item()


def step_pair(s, width, bs):
    "Our step and the textbook's, both warm; they must agree on what they compute."
    from recon_nb.batches import batch_index, fetch
    from recon_nb.steps import set_lr, train_step
    st = open_state(paper_config(s, width, bs, dropout=0.))
    batch = fetch(st, batch_index(st))
    book = Textbook(st, batch)
    for net in st.nets: net.train()
    def ours():
        set_lr(st)
        found = {k: v.item() for k, v in train_step(st, batch).items()}
        return found['loss_d'], found['loss_g']
    np.testing.assert_allclose(ours(), book.step(), rtol=.02)
    return st, ours, book.step


def time_step(s, width, bs):
    st, ours, theirs = step_pair(s, width, bs)
    return side_by_side(ours, theirs, rounds=s.pick(15, 2), **shape_of(st.cfg))


def shape_of(cfg):
    return dict(preset=cfg.preset, size=cfg.size, width=cfg.width, bs=cfg.bs)


BOOK = "a textbook DCGAN step on the same networks and batch"


@row('step-16', "a training step, the paper's networks, 80 px, width 16, batch 64", BOOK,
     floor=1.33, aim=1.38)
def time_narrow(s): return time_step(s, 16, 64)


@row('step-64', 'the same, width 64, batch 16', BOOK, floor=1.09, aim=1.16)
def time_wide(s): return time_step(s, 64, 16)


def time_share(s, width, bs):
    "Counted operations a second, over those of a large matrix product."
    from recon_nb.cost import count_flops
    st, ours, _ = step_pair(s, width, bs)
    flops, n = count_flops(replace(st.cfg, bs=8))*st.cfg.bs, s.pick(2048, 256)
    x = torch.randn(n, n)
    found = side_by_side(ours, lambda: x@x, rounds=s.pick(9, 2), **shape_of(st.cfg), product=n)
    rates = flops/found['ours'], 2*n**3/found['theirs']
    return found | dict(value=rates[0]/rates[1], flops_per_s=rates)


PRODUCT = 'a 2048 x 2048 x 2048 product in float32'


@row('flops-64', 'its operations a second, width 64', PRODUCT, floor=.76, aim=.8)
def time_wide_share(s): return time_share(s, 64, 16)


@row('flops-16', 'its operations a second, width 16', PRODUCT, floor=.6, aim=.62)
def time_narrow_share(s): return time_share(s, 16, 64)


def time_configs(s, first, second, rounds):
    "Steps of two configs."
    from recon_nb.batches import batch_index, fetch
    from recon_nb.steps import train_step
    works = []
    for cfg in (first, second):
        st = open_state(cfg)
        batch = fetch(st, batch_index(st))
        for net in st.nets: net.train()
        def step(st=st, batch=batch): return [v.item() for v in train_step(st, batch).values()]
        for _ in range(2): step()
        works.append(step)
    return side_by_side(*works, rounds=rounds, **shape_of(first))


@row('bf16', "`precision='bf16'` on the CPU, a training step: where it is slower, the run says so",
     'the step in float32')
def time_bf16(s):
    from recon_nb.training import _announce
    cfg = paper_config(s, 16, 64)
    half = replace(cfg, precision='bf16')
    found = time_configs(s, half, cfg, s.pick(5, 1))
    slower, said = found['ours'] > found['theirs'], 'slower' in _announce(open_state(half))
    return found | dict(said_slower=said, verdict='met' if said == slower else 'missed')


@row('compile', '`compile=True`, a training step, once compiled', 'the same step, not compiled')
def time_compiled(s):
    cfg, start = paper_config(s, 16, 64), time.perf_counter()
    found = time_configs(s, replace(cfg, compile=True), cfg, s.pick(11, 1))
    torch._dynamo.reset()
    whole = time.perf_counter()-start-found['repeats']*(found['ours']+found['theirs'])
    return found | dict(compile_seconds=whole)


# Photos

def write_photo(path, w, h, rng):
    "A JPEG with a photo's detail: clouds of every size, and the noise of a sensor."
    im = np.zeros((h, w, 3), np.float32)
    for side in (4, 16, 64, 256):
        cloud = rng.integers(0, 256, (side*h//w+1, side, 3), dtype=np.uint8)
        im += np.asarray(Image.fromarray(cloud).resize((w, h), Image.Resampling.BICUBIC))/4
    im += rng.normal(0, 3, (h, w, 1)).astype(np.float32)
    Image.fromarray(im.clip(0, 255).astype(np.uint8)).save(path, quality=90)


CUTS = dict(zoom=dict(i_r=1., i_in=1/3), canvas=dict(i_r=1.))


@row('large-photos', 'photos of 12 megapixels -> cuts', 'the same, decoded whole', floor=6, aim=8)
def time_large(s):
    from recon_nb.data import load_photos
    folder, rng, size = s.folder/'large', np.random.default_rng(0), s.pick(80, 32)
    folder.mkdir(exist_ok=True)
    w, h = s.pick((4000, 3000), (800, 600))
    n = s.pick(12, 2)
    for i in range(n): write_photo(folder/f'{i}.jpg', w, h, rng)
    def load(whole):
        with fresh_cache(s):
            load_photos(folder, size=size, cuts=CUTS['canvas'], progress=False, whole=whole)
    return side_by_side(lambda: load(False), lambda: load(True), rounds=s.pick(3, 1), how=min,
                        photos=n, pixels=[w, h], size=size, kind='drawn with noise, quality 90')


def photo_folder(s):
    "Photos of usual size in a folder of one class: real ones, if RECON_NB_DATA has them."
    folder, n = s.folder/'usual'/'all', s.pick(600, 12)
    if folder.exists(): return folder.parent, s.kind
    folder.mkdir(parents=True)
    places = [s.data/v/'VOCdevkit/VOC2012/JPEGImages'
              for v in ('voc2012_full120', 'voc2012_short240')] if s.data else []
    found = next((p for p in places if p.is_dir()), None)
    files = sorted(found.glob('*.jpg'))[:n] if found else []
    s.kind = f'{len(files)} of {found.parents[2].name}, repeated' if found else 'drawn with noise'
    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder/f'{i:04d}.jpg'
        if files: path.write_bytes(files[i % len(files)].read_bytes())
        else: write_photo(path, 500, 375, rng)
    return folder.parent, s.kind


class Cutter:
    "The cuts as torchvision's users make them; floats in [-1, 1]."
    def __init__(self, size, cuts): self.size, self.cuts = size, cuts

    def __call__(self, im):
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F
        side = min(im.size)
        def cut(share):
            part = F.center_crop(im, [round(share*side)]*2)
            part = F.resize(part, [self.size]*2, InterpolationMode.BICUBIC, antialias=True)
            return F.to_tensor(part).mul_(2).sub_(1)
        return tuple(cut(share) for share in self.cuts.values())


def usual_loader(folder, size, cuts, workers=2):
    "ImageFolder and DataLoader, as in every tutorial."
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    return DataLoader(ImageFolder(folder, Cutter(size, cuts)), 64, num_workers=workers)


def go_through(loader):
    for _ in loader: pass


def time_first(s, view):
    from recon_nb.data import load_photos
    folder, kind = photo_folder(s)
    size, cuts = s.pick(80, 32), CUTS[view]
    def ours():
        with fresh_cache(s): load_photos(folder/'all', size=size, cuts=cuts, progress=False)
    loader = usual_loader(folder, size, cuts)
    return side_by_side(ours, lambda: go_through(loader), rounds=s.pick(5, 1), how=min,
                        photos=len(loader.dataset), kind=kind, size=size, cuts=[*cuts])


LOADER = '`ImageFolder`, the same cuts, `DataLoader(num_workers=2)`: an epoch'


@row('first-zoom', 'photos -> cuts the first time, zoomed view', LOADER, floor=1., aim=1.5)
def time_first_zoom(s): return time_first(s, 'zoom')


@row('first-canvas', 'the same, canvas', LOADER, floor=1.5, aim=2.)
def time_first_canvas(s): return time_first(s, 'canvas')


def cached_state(s, bs=64):
    "A state on the usual photos, from the cache."
    from recon_nb.data import load_photos
    from recon_nb.state import make_state
    folder, kind = photo_folder(s)
    cfg = paper_config(s, 16, bs)
    photos = load_photos(folder/'all', size=cfg.size, cuts=CUTS['zoom'], progress=False)
    return make_state(cfg, photos, np.arange(len(photos)), np.arange(8)), folder, kind


def go_through_epoch(st):
    "An epoch as `fit` fetches it."
    from recon_nb.batches import batch_index, fetch
    for step in range(st.steps_per_epoch):
        st.step = step
        fetch(st, batch_index(st), epoch=st.epoch, augment=True)


@row('later-epochs', 'photos from the second epoch on, batches of 64', LOADER, floor=20)
def time_later(s):
    with fresh_cache(s):
        st, folder, kind = cached_state(s)
        loader = usual_loader(folder, st.cfg.size, CUTS['zoom'])
        each = s.pick(20, 2)
        ours, theirs = take_turns(lambda: [go_through_epoch(st) for _ in range(each)],
                                  lambda: go_through(loader), rounds=s.pick(5, 1))
    seen = len(st.train)//st.bs*st.bs
    return dict(ours=median(ours)/each/seen*len(st.train), theirs=median(theirs), repeats=len(ours),
                config=dict(photos=len(st.train), kind=kind, size=st.cfg.size))


@row('fetch-share', 'fetching a batch of 64, 80 px', 'the training step it is for, width 16',
     unit='%', aim=3, less=True)
def time_fetch(s):
    from recon_nb.batches import batch_index, fetch
    from recon_nb.steps import train_step
    with fresh_cache(s):
        st, _, kind = cached_state(s)
        for net in st.nets: net.train()
        batch = fetch(st, batch_index(st))
        def read(): return fetch(st, batch_index(st), epoch=st.epoch, augment=True)
        def step(): return [v.item() for v in train_step(st, batch).values()]
        found = side_by_side(read, step, rounds=s.pick(11, 2), **shape_of(st.cfg), kind=kind)
    return found | dict(value=100*found['ours']/found['theirs'])


@row('host', 'masks and random numbers of a batch of 512, 224 px: what a GPU waits for',
     "a copy of the batch's bytes", unit='ms', floor=10, aim=3, less=True)
def time_host(s):
    from recon_nb.batches import _gather
    from recon_nb.state import toy_state
    n, size = s.pick(512, 16), s.pick(224, 32)
    st, index = toy_state('second-round', size=size, n=16, negative=.1), np.arange(n)*7
    class NoPhotos: # the masks' and the changes' numbers alone
        def take(self, index): return {}
    st.photos = NoPhotos()
    st.task.mask = toy_state('improved', size=size, n=16).task.mask # the patches, most numbers
    photos = np.zeros((n, size, size, 3), np.uint8)
    found = side_by_side(lambda: _gather(st, index, epoch=1, augment=True), photos.copy,
                         rounds=s.pick(15, 2), each=s.pick(3, 1), bs=n, size=size, mask='patches')
    return found | dict(value=1000*found['ours'])


# Whole runs

@row('train-gan', '`train_gan` on the embedded set, from call to result',
     'the sum of its bare steps', floor=1.10, aim=1.05, less=True)
def time_training(s):
    from recon_nb.batches import batch_index, fetch
    from recon_nb.config import get_preset
    from recon_nb.data import load_photos
    from recon_nb.steps import train_step
    from recon_nb.task import make_task
    from recon_nb.training import train_gan
    cfg = get_preset('quick', max_steps=s.pick(1000, 30))
    load_photos('shapes', size=cfg.size, cuts=make_task(cfg).cuts, progress=False)
    twin, every, bare = open_state(cfg), s.pick(20, 10), []
    for net in twin.nets: net.train()
    batch = fetch(twin, batch_index(twin))
    def take_turn(st):                         # as a hook: a bare step of the twin now and then
        if st.event == 'step' and st.step % every == 1:
            bare.append(seconds_of(lambda: [v.item() for v in train_step(twin, batch).values()]))
    with tempfile.TemporaryDirectory(dir=s.folder) as place:
        whole = seconds_of(lambda: train_gan(preset='quick', max_steps=cfg.max_steps,
                                             run_dir=Path(place)/'run', hooks=take_turn,
                                             progress=False))
    return dict(ours=whole-sum(bare), theirs=cfg.max_steps*median(bare), repeats=1,
                config=dict(shape_of(cfg), steps=cfg.max_steps, photos='in the cache',
                            bare_steps=len(bare)))


@row('two-processes', 'two processes, a core each: photos a second', 'one process, one core',
     floor=1.7, aim=1.9)
def time_processes(s):
    def rate(n):
        words = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', n, HERE,
                 '--child', 'steps', *['--quick']*s.quick]
        return run_child(*words, env=dict(OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='1'))
    if not hasattr(os, 'sched_setaffinity') or len(os.sched_getaffinity(0)) < 2:
        return dict(missing='two cores, and a system that gives a process its core')
    ours, theirs = take_turns(2, 1, rounds=s.pick(3, 1), clock=rate)
    return dict(ours=min(ours), theirs=min(theirs), repeats=len(ours),
                config=dict(shape_of(paper_config(s, 16, 64)), steps=s.pick(12, 2)))


def child_steps(s):
    "Seconds of a step in this process' group; each process has a core."
    from recon_nb.devices import make_accelerator
    from recon_nb.batches import batch_index, fetch
    from recon_nb.steps import train_step
    rank = int(os.environ['LOCAL_RANK'])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    acc = make_accelerator()
    st = open_state(paper_config(s, 16, 64))
    for net in st.nets: net.train()
    ticks = []
    for _ in range(s.pick(12, 2)+2):
        start = time.perf_counter()
        for v in train_step(st, fetch(st, batch_index(st), augment=True)).values(): v.item()
        st.step += 1
        ticks.append(time.perf_counter()-start)
    if acc.is_main_process: print(median(ticks[2:]))


def write_history(path, n):
    "The history of a run of `n` steps, as the trainer writes it."
    losses = np.random.default_rng(0).uniform(.1, 2, (n, 5))
    losses[:, 1] **= 20                        # some are small, and have exponents
    names = 'loss_d', 'd_real', 'd_fake', 'loss_g', 'adv'
    with open(path, 'w') as f:
        for i, values in enumerate(losses.round(6).tolist(), 1):
            said = ''.join(f', "{k}": {v}' for k, v in zip(names, values))
            f.write(f'{{"step": {i}, "epoch": {(i-1)//500+1}, "seconds": {i/40:.2f}{said}}}\n')


def open_history(s):
    path, n = s.folder/'history.jsonl', s.pick(1_000_000, 30_000)
    if not path.exists(): write_history(path, n)
    return path, n


@row('history-open', 'a run of 1,000,000 steps: its history, as columns',
     '`json.loads`, line by line', unit='s', floor=1, less=True)
def time_history(s):
    from recon_nb import records
    path, n = open_history(s)
    def ours():
        records._known.clear()
        rows = records.read_rows(path)
        assert len(rows) == n and len(records.column(rows, 'loss_d')) == n
    def theirs():
        with open(path) as f: return [json.loads(line) for line in f]
    ours()                                     # what reads tables is imported once
    found = side_by_side(ours, theirs, rounds=s.pick(3, 1), how=min, clock=cpu_seconds_of, steps=n,
                         megabytes=path.stat().st_size/1e6)
    return found | dict(value=found['ours'])


@row('history-draw', 'one redraw of its curves, as the monitor shows them',
     'matplotlib, all points', unit='s', floor=.1, less=True)
def time_curves(s):
    from matplotlib import pyplot as plt
    from recon_nb.compare import _Records
    from recon_nb.records import column, read_rows
    from recon_nb.widgets import _charts
    path, n = open_history(s)
    history, keys = read_rows(path), ('loss_d', 'adv')
    records = _Records(history, [], dict(train=32_000, bs=64))
    def draw(curves):
        fig, axes = plt.subplots(1, len(keys))
        for ax, (x, y) in zip(axes, curves): ax.plot(x, y)
        fig.canvas.draw()
        plt.close(fig)
    def ours(): return _charts(records, [])
    def theirs(): draw([(column(history, 'step'), column(history, k)) for k in keys])
    found = side_by_side(ours, theirs, rounds=s.pick(5, 1), how=min, clock=cpu_seconds_of, steps=n,
                         curves=len(keys))
    return found | dict(value=found['ours'])


def write_many(folder, n):
    "Empty files by the thousand, in folders of a thousand."
    for i in range(0, n, 1000):
        place = folder/f'c{i//1000:04d}'
        place.mkdir(parents=True)
        first = place/'00000.jpg'
        first.touch()
        for j in range(1, min(1000, n-i)): os.link(first, place/f'{j:05d}.jpg')


def walk_once(folder):
    "Names, sizes and times of all files: one walk, one stat a file."
    todo, found = [str(folder)], []
    while todo:
        with os.scandir(todo.pop()) as entries:
            for e in entries:
                if e.is_dir(): todo.append(e.path)
                else:
                    known = e.stat()
                    found.append((e.path, known.st_size, known.st_mtime_ns))
    return found


@row('listing', 'a folder of many photos: what a second load lists and asks of each',
     '`os.scandir`, one stat a file', floor=1.3, aim=1.1, less=True)
def time_listing(s):
    from recon_nb.data import _list_photos
    folder, n = s.folder/'many', s.pick(200_000, 2000)
    if not folder.exists(): write_many(folder, n)
    def ours(): assert len(_list_photos(folder)) == n
    return side_by_side(ours, lambda: walk_once(folder), rounds=s.pick(3, 1), how=min,
                        clock=cpu_seconds_of, files=n,
                        kind='empty, hard links, in folders of a thousand')


# Memory

@contextmanager
def watch_memory(found):
    "Peak of this process' anonymous memory, in MB, into a list."
    def now():
        for line in open('/proc/self/status'):
            if line.startswith('RssAnon'): return int(line.split()[1])/1024
    stop, peaks = threading.Event(), [now()]
    def look():
        while not stop.wait(.01): peaks.append(now())
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try: yield
    finally:
        stop.set()
        thread.join()
        found.append(max(peaks))


def register_noise(n, folder):
    "A named set of `n` noisy photos in a mapped file: 32 px, ten classes."
    from recon_nb.data import SETS
    from recon_nb.photos import Photos
    path = folder/f'noise-{n}.npy'
    if not path.exists():
        x = np.lib.format.open_memmap(path, 'w+', np.uint8, (n, 32, 32, 3))
        rng = np.random.default_rng(0)
        for i in range(0, n, 5000): x[i:i+5000] = rng.integers(0, 256, x[i:i+5000].shape, np.uint8)
        x.flush()
        del x
    photos = np.load(path, mmap_mode='r')
    ids = np.stack([np.arange(1, n+1), np.arange(1, n+1)], 1).astype(np.uint64)
    def load(*, size, cuts, **_):
        return Photos(cuts=dict.fromkeys(cuts, photos), labels=np.arange(n) % 10,
                      classes=tuple('abcdefghij'), names=[f'{i:06d}' for i in range(n)],
                      skipped=[], held_out=np.arange(0, n, 10), source='noise', ids=ids)
    SETS['noise'] = load
    return photos


def use_memory(what, n, folder):
    "One of three works with `n` photos."
    from recon_nb.training import train_gan
    photos, place = register_noise(n, folder), folder/f'{what}-{n}'
    how = dict(preset='quick', progress=False, device='cpu')
    if what == 'train': return train_gan('noise', run_dir=place, max_steps=30, **how)
    if what == 'embed':
        from recon_nb.cli import embed
        return embed([str(folder/'run'), 'noise', '-o', f'{place}.npy', '--device', 'cpu'])
    from recon_nb.classification import probe
    from recon_nb.features import encode
    from recon_nb.heads import knn_predict
    from recon_nb.labelled import LabelledSet
    from recon_nb.run import GANRun
    y, some = np.arange(n) % 10, photos[:1000]
    data = LabelledSet('noise', photos, y, some, y[:1000], tuple('abcdefghij'))
    probe(folder/'run', data, mode='linear', seeds=1, device='cpu', progress=False)
    f = encode(GANRun.load(folder/'run', device='cpu').encoder, photos, device='cpu')
    knn_predict(f, torch.from_numpy(y), f[:1000])


def child_memory(what, n, folder):
    "Prints the MB of anonymous memory that a work reaches; or makes ready what all of them need."
    from recon_nb.training import train_gan
    folder, found = Path(folder), [0]
    register_noise(int(n), folder)
    if what == 'prepare':
        run = folder/'run'
        if not run.exists(): train_gan('noise', preset='quick', max_steps=2, run_dir=run)
    else:
        with watch_memory(found): use_memory(what, int(n), folder)
    print(found[-1])


def weigh(s, what):
    if not Path('/proc/self/status').exists(): return dict(missing='a system with /proc')
    n = s.pick((100_000, 1000), (2000, 1000))
    ask = partial(run_child, HERE, '--child', what)
    folder = s.folder/'memory'
    folder.mkdir(exist_ok=True)
    for k in reversed(n): run_child(HERE, '--child', 'prepare', k, folder)
    ours, theirs = (ask(k, folder) for k in n)
    return dict(ours=ours, theirs=theirs, value=ours-theirs, repeats=1,
                config=dict(photos=n, size=32, width=16, memory='RssAnon, MB, its peak'))


FEW = '1,000 photos'


@row('memory-train', 'memory of training on 100,000 photos', FEW, unit='MB', floor=300, aim=100,
     less=True)
def weigh_training(s): return weigh(s, 'train')


@row('memory-embed', '`recon-embed` of 100,000 photos', FEW, unit='MB', floor=300, aim=100,
     less=True)
def weigh_embedding(s): return weigh(s, 'embed')


@row('memory-probe', 'a linear probe of 100,000 labelled photos, and the neighbours of 1,000',
     FEW, unit='MB', floor=300, aim=100, less=True)
def weigh_probing(s): return weigh(s, 'probe')


# Probes

def noisy_classes(n, d, seed):
    "Features of ten classes that overlap."
    rng = np.random.default_rng(0)
    centres = rng.normal(0, .2, (10, d))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, n)
    return (centres[y]+rng.normal(size=(n, d))).astype(np.float32), y


def probe_sets(s):
    n, d = s.pick((60_000, 512), (1500, 32))
    return noisy_classes(n, d, 1), noisy_classes(s.pick(2000, 300), d, 2)


def with_accuracy(found, s, ours, theirs):
    "Two answers must be equally good, to half a point."
    if not s.quick and abs(ours-theirs) > .005:
        raise RuntimeError(f'not equally good: {ours:.4f}, {theirs:.4f}')
    return found | dict(accuracy=[ours, theirs])


@row('probe-linear', 'linear probe of 60,000 x 512 features',
     "scikit-learn's `LogisticRegression` (lbfgs), equally good", floor=2, aim=4)
def time_linear(s):
    from recon_nb.heads import fit_linear
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    (x, y), (t, u) = probe_sets(s)
    xs, ys, ts = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(t)
    right, l2 = {}, 100.
    def ours():
        fitted = fit_linear(xs, ys, l2=l2, n_classes=10, exact=False)    # as tight as theirs
        found = fitted.predict(ts).numpy()
        right['ours'] = float((found == u).mean())
    def theirs():
        scaler = StandardScaler().fit(x)
        fitted = LogisticRegression(C=1/l2, max_iter=200).fit(scaler.transform(x), y)
        right['theirs'] = float(fitted.score(scaler.transform(t), u))
    found = side_by_side(ours, theirs, rounds=s.pick(3, 1), how=min, features=list(x.shape))
    return with_accuracy(found, s, **right)


@row('probe-knn', 'nearest neighbours of 2,000 among 60,000 x 512 features',
     "scikit-learn's `KNeighborsClassifier` (brute, cosine), equally good", floor=2, aim=4)
def time_neighbours(s):
    from recon_nb.heads import knn_predict
    from sklearn.neighbors import KNeighborsClassifier
    (x, y), (t, u) = probe_sets(s)
    xs, ys, ts = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(t)
    right = {}
    def ours(): right['ours'] = float((knn_predict(xs, ys, ts, k=20).numpy() == u).mean())
    def theirs():
        near = KNeighborsClassifier(20, algorithm='brute', metric='cosine').fit(x, y)
        right['theirs'] = float(near.score(t, u))
    found = side_by_side(ours, theirs, rounds=s.pick(3, 1), how=min, features=list(x.shape),
                         queries=len(t))
    return with_accuracy(found, s, **right)


# Records and the table

def judge(r, value):
    "What a value is worth: met, floor (the aim is not reached), missed; measured, without a goal."
    reaches = lambda goal: goal is None or (value <= goal if r.less else value >= goal)
    if r.floor is None and r.aim is None: return 'measured'
    if not reaches(r.floor): return 'missed'
    return 'met' if reaches(r.aim) else 'floor'


def measure(s, r):
    "A row's record."
    start = time.monotonic()
    found = r.measure(s)
    if 'missing' in found: verdict = dict(verdict='not here')
    else:
        first, second = (found['ours'], found['theirs'])[::1 if r.less else -1]
        found['ratio'] = first/second
        found.setdefault('value', found['ratio'])
        verdict = dict(verdict=found.pop('verdict', None) or judge(r, found['value']))
    return dict(schema=1, kind='speed', row=r.name, **verdict, **found, unit=r.unit,
                floor=r.floor, aim=r.aim, less=r.less, quick=s.quick, device='cpu',
                took=round(time.monotonic()-start, 1), machine=describe_machine(),
                date=time.strftime('%Y-%m-%d'))


def show_number(x, unit):
    "A value with its unit, as the table shows it."
    if x is None: return '-'
    digits = max(0, 2-int(math.floor(math.log10(abs(x))))) if x else 0
    return f'{x:.{min(digits, 2)}f}' + ('x' if unit == 'x' else f' {unit}')


def build_line(r, record):
    "A row of the table."
    least = 'at most ' if r.less else ''
    goals = [least*(g is not None) + show_number(g, r.unit) for g in (r.floor, r.aim)]
    if record is None: found, verdict = '-', 'not run'
    elif record['verdict'] == 'not here': found, verdict = '-', f"needs {record['missing']}"
    else:
        found, v = show_number(record['value'], r.unit), record['verdict']
        verdict = dict(floor='aim not reached', missed='**missed**').get(v, v)
        if v in ('floor', 'missed') and r.name in REASONS: verdict += f': {REASONS[r.name]}'
    return '| ' + ' | '.join([f'`{r.name}`', r.what, r.against, *goals, found, verdict]) + ' |'


def build_table(records):
    "The table of all rows, from the newest record of each."
    newest = {r['row']: r for r in records}
    head = ['row', 'what', 'against', 'floor', 'aim', 'measured', '']
    lines = ['| ' + ' | '.join(head) + ' |', '|---'*len(head) + '|']
    lines += [build_line(r, newest.get(name)) for name, r in ROWS.items()]
    seen = [newest[name] for name in ROWS if name in newest]
    kinds = {f"{m['cpus']} cores, {m['threads']} threads, torch {m['torch']}"
             for m in (r['machine'] for r in seen)}
    said = f"Measured on: {'; '.join(sorted(kinds)) or 'nothing yet'}."
    if any(r['quick'] for r in seen): said += ' Toy sizes: they try the script and tell nothing.'
    return '\n'.join([*lines, '', said])


def write_table(records, readme):
    "Put the table into a page, between its two marks."
    text = Path(readme).read_text(encoding='utf-8')
    if BEGIN not in text or END not in text:
        raise InputError(f'{readme} has no place for the table: it needs the lines {BEGIN!r} '
                         f'and {END!r}.')
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    write_atomic(readme, f'{before}{BEGIN}\n\n{build_table(records)}\n\n{END}{after}')


# The command

def make_parser():
    p = argparse.ArgumentParser('run.py', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', nargs='+', metavar='NAME', help='rows to measure; all if not given')
    p.add_argument('--list', action='store_true', help='name the rows and end')
    p.add_argument('--quick', action='store_true', help='all tiny: tries the script, tells nothing')
    p.add_argument('--out', type=Path, help='file of records; if not given '
                   'nbs/results/speed.jsonl, with --quick none')
    p.add_argument('--write', action='store_true', help='build the table from the records')
    p.add_argument('--readme', type=Path, default=README, help='page with the table')
    p.add_argument('--threads', type=int, help="PyTorch's; its own choice if not given")
    p.add_argument('--child', nargs='+', help=argparse.SUPPRESS)
    return p


def run_as_child(words, s):
    what, *rest = words
    if what == 'steps': child_steps(s)
    else: child_memory(what, *rest)


def measure_rows(names, s, out):
    "Each row's record, as soon as it is there. Returns how many failed."
    failed = 0
    for name in names:
        try: record = measure(s, ROWS[name])
        except Exception as e:                 # the other rows go on
            failed += 1
            says = ' '.join(str(e).split())[-300:]
            print(f'{name:15} failed: {type(e).__name__}: {says}', flush=True)
            continue
        if out: append_jsonl(out, record)
        found = show_number(record.get('value'), record['unit'])
        print(f"{name:15}{found:>12}  {record['verdict']:9}{record['took']:7.1f} s", flush=True)
    return failed


def main(argv=None):
    "0 if every row was measured, 1 if one failed, 2 for a wrong call."
    args = make_parser().parse_args(argv)
    data = os.environ.get('RECON_NB_DATA')
    if args.threads: torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix='recon_nb_speed_') as folder:
        s = Session(args.quick, Path(folder), Path(data) if data else None)
        if args.child: return run_as_child(args.child, s)
        try:
            names = [check_name(n, ROWS, 'row') for n in args.rows or ROWS]
            if args.list: print('\n'.join(f'{n:15}{ROWS[n].what}' for n in names))
            out = args.out or (None if args.quick else RECORDS)
            alone = args.write and not args.rows and not args.quick
            failed = 0 if args.list or alone else measure_rows(names, s, out)
            if args.write: write_table(read_jsonl(args.out or RECORDS), args.readme)
        except InputError as e:
            print(f'run.py: {e}', file=sys.stderr)
            return 2
    return int(failed > 0)


if __name__ == '__main__': sys.exit(main())
