"""What a GPU does with this package: does it work, how fast, the paper at its own scale, Table 3.

`python benchmarks/gpu.py --data FOLDER` measures in order of worth while the minutes last. Each
thing measured is a line of OUT/records.jsonl. The same command again goes on where the last one
ended, even if that one was killed. benchmarks/README.md says how to read the records."""
import os

if __name__ == '__main__': os.environ.setdefault('TQDM_DISABLE', '1')   # a line an item, no bars
import argparse, gc, json, sys, time, traceback
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState
from recon_nb.checkpoint import save_tensors
from recon_nb.compare import _Records
from recon_nb.config import get_preset
from recon_nb.contenders import as_contender
from recon_nb.core import (InputError, append_jsonl, check_name, describe_machine, duration,
                           read_jsonl, write_atomic)
from recon_nb.data import SETS, load_photos, split_photos
from recon_nb.devices import make_accelerator, _mean_over
from recon_nb.evaluation import generate
from recon_nb.experiments import (_by_key, estimate, _in_order, list_jobs, _locked_records,
                                  _measure_speed, run_jobs)
from recon_nb.export import load_pretrained
from recon_nb.features import encode
from recon_nb.figures import draw_reconstructions
from recon_nb.finetune import Recipe, finetune
from recon_nb.machine import check_device
from recon_nb.photos import _PHOTO_SUFFIXES
from recon_nb.pixels import to_model
from recon_nb.protocols import PROTOCOLS, ROWS, find_labelled, narrow
from recon_nb.cost import count_flops
from recon_nb.run import GANRun
from recon_nb.selftest import CHECKS, run_checks
from recon_nb.shapes import draw_shapes
from recon_nb.batches import batch_index, fetch, prefetch_batches
from recon_nb.state import make_state
from recon_nb.steps import set_lr, train_step
from recon_nb.task import Sample, make_task
from recon_nb.trainer import save
from recon_nb.training import train_gan

VOC, CIFAR = 'voc2012_square240', 'cifar10'    # folders in --data
PAPER = 'paper-sb', 'paper-baseline', 'paper-l1'
ROW_OF = {preset: row for row, preset in ROWS.items()}
NEEDS = dict(works=[], speed=[], paper=[f'{VOC}/train', f'{VOC}/val'],
             later=[f'{VOC}/val', f'{CIFAR}/train'])
LIMITS = dict(works=90, speed=90)              # seconds of a call; the others take what is left
LEAST = dict(works=5, speed=5, paper=40, later=60)
TOY_CHECKS = 'run', 'agreement', 'resume', 'bf16', 'fp16'      # seconds on a CPU, not minutes
TYPES = dict(no=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
LISTING = 'what there is to do'
count_once = lru_cache(count_flops)


class Item(NamedTuple):
    "One thing to measure."
    name: str
    need: float     # seconds it may take; with fewer left it is not begun
    config: dict    # as the record shall say it
    work: Callable  # returns the record's values; `says` is printed


@dataclass
class Session:
    "One call of this script."
    out: Path
    data: Path | None
    device: str
    toy: bool
    end: float                                 # on time.monotonic()'s clock
    epochs: int | None
    precision: str | None
    again: bool
    records: list
    todo: list = field(default_factory=list)   # what this call leaves undone, in words
    stopped: bool = False                      # by a signal, during training
    broken: bool = False                       # the items of some stage could not be listed

    def seconds_left(self): return self.end - time.monotonic()

    def find(self, stage, name):
        "The last record of an item; empty if there is none."
        found = [r for r in self.records if (r['stage'], r['name']) == (stage, name)]
        return found[-1] if found else {}

    def is_done(self, stage, name):
        "Whether an item needs no more work. What failed does if --again was given."
        status = self.find(stage, name).get('status')
        return status in ('ok', 'not here') or status == 'failed' and not self.again


def describe_device(device):
    "A device as its maker calls it."
    if device == 'cpu': return device
    g = torch.cuda.get_device_properties(device)
    about = f'{g.total_memory/2**30:.0f} GiB, compute {g.major}.{g.minor}'
    return f'cuda {torch.version.cuda}: {g.name} ({about})'


def measure(s, stage, item):
    "Do one item and write its record, whatever happens."
    start = time.monotonic()
    try: values = dict(status='ok') | item.work()
    except Exception as e:
        says = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        values = dict(status='failed', says=says, traceback=traceback.format_exc())
    seconds = round(time.monotonic()-start, 2)
    record = dict(schema=1, stage=stage, name=item.name, status='', toy=s.toy, config=item.config,
                  n=1, seconds=seconds, device=describe_device(s.device),
                  machine=describe_machine()) | values
    append_jsonl(s.out/'records.jsonl', record)
    s.records.append(record)
    status, says = record['status'], record['says']
    print(f'{stage:6}{status:9}{seconds:6.1f} s  {item.name}: {says}', flush=True)
    if status == 'part': s.todo.append(f'{stage}: {item.name} (so far {says})')
    gc.collect()                               # networks of this item must not count in the next
    if s.device == 'cuda': torch.cuda.empty_cache()


def run_stage(s, stage):
    "Every item of a stage that is not done and fits the time left."
    if s.seconds_left() < (1 if s.toy else LEAST[stage]):
        s.todo.append(f'{stage}: not looked at, no time was left')
        return
    end = min(s.end, time.monotonic() + LIMITS.get(stage, float('inf')))
    items = iter(STAGES[stage](s))
    while not s.stopped:
        try: item = next(items, None)
        except Exception as e:                 # the other stages go on
            s.broken = True
            def fail(e=e): raise e
            measure(s, stage, Item(LISTING, 0, {}, fail))
            return
        if item is None: return
        if s.is_done(stage, item.name): continue
        if time.monotonic() + item.need <= end: measure(s, stage, item)
        else: s.todo.append(f'{stage}: {item.name} (may take {duration(float(item.need))})')


# Stage 1: does it work?

def list_checks(s):
    "The checks of recon-selftest; at toy size the quick ones."
    slow = dict(compile=40, processes=30, paper=20)
    for name in CHECKS:
        if s.toy and name not in TOY_CHECKS: continue
        yield Item(name, 1 if s.toy else slow.get(name, 6), {}, partial(run_check, s, name))
    if s.device == 'cuda': yield Item('never waits', 10, {}, partial(check_waits, s))


def run_check(s, name):
    "A check: ok, failed, or not to be had here."
    found, = run_checks(s.device, [name])
    return dict(status=found.status, says=found.says)


def check_waits(s, presets=('paper-sb', 'wgan-gp', 'improved-gan', 'improved')):
    "PyTorch raises if a step, or the making of its batch, reads the device before it is asked to."
    for preset in presets:
        st = open_state(s, get_preset(preset, size=32, width=8, bs=16, epochs=2))
        try:
            with prefetch_batches(st) as batches:
                for batch in batches:
                    set_lr(st)
                    train_step(st, batch)
                    st.step += 1
                    torch.cuda.set_sync_debug_mode('error')    # the first sends what all need
        finally: torch.cuda.set_sync_debug_mode('default')
    return dict(says=f"{', '.join(presets)}: no step reads the device", n=len(presets))


# Stage 2: how fast?

def list_speeds(s):
    "Training steps, then the probes, then what must be compiled first."
    size, width, bs = (32, 8, 16) if s.toy else (80, 64, 512)
    full = dict(preset='paper-sb', size=size, width=width, bs=bs, precision='no', tf32=True,
                channels_last=True, compile=False, benchmark=False)
    half, plain = full | dict(precision='bf16'), dict(channels_last=False)

    def time_step(config, need=8):
        work = partial(time_training, s, **config)
        return Item(name_step(config), 1 if s.toy else need, config, work)
    for config in (full | dict(tf32=False), full, half, full | dict(benchmark=True),
                   half | dict(benchmark=True), full | plain, half | plain): yield time_step(config)
    for side in (32, 48) if s.toy else (32, 64, 96):
        fast = dict(preset='improved', size=side, bs=min(bs, 128), precision=choose_precision(s))
        yield time_step(full | fast)
    how, need = dict(size=size, width=width, n=64 if s.toy else 8192), 1 if s.toy else 8
    yield Item('probe, linear: encoding', need, how, partial(time_encoding, s, **how))
    for tune in (how | dict(precision=p) for p in ('no', 'bf16')):
        name = f"probe, fine-tuning, {tune['precision']}"
        yield Item(name, need, tune, partial(time_tuning, s, **tune))
    if not s.toy: yield from (time_step(c | dict(compile=True), need=40) for c in (half, full))


def name_step(c):
    "A step's name; it tells all steps apart."
    kind = c['precision']
    if kind == 'no': kind = 'float32 with TF32' if c['tf32'] else 'float32'
    extra = [', cudnn.benchmark']*c['benchmark'] + [', compiled']*c['compile']
    extra += [', not channels-last']*(not c['channels_last'])
    return f"step {c['preset']} {c['size']} px, {kind}" + ''.join(extra)


def wait(s):
    "Until the device has done all that was asked of it."
    if s.device == 'cuda': torch.cuda.synchronize()


def time_steps(s, step, seconds=1.5):
    "(seconds for each call, how many calls), after a few that don't count."
    for _ in range(1 if s.toy else 4): step()
    wait(s)
    start = time.monotonic()
    step()
    wait(s)
    n = 2 if s.toy else min(500, max(3, int(seconds/(time.monotonic()-start))))
    start = time.monotonic()
    for _ in range(n): step()
    wait(s)
    return (time.monotonic()-start)/n, n


@contextmanager
def torch_flags(**flags):
    "PyTorch's switches for the time of a measurement: tf32, benchmark."
    conv, product = torch.backends.cudnn, torch.backends.cuda.matmul
    was = conv.allow_tf32, product.allow_tf32, conv.benchmark
    conv.allow_tf32 = product.allow_tf32 = flags['tf32']
    conv.benchmark = flags['benchmark']
    try: yield
    finally: conv.allow_tf32, product.allow_tf32, conv.benchmark = was


def open_accelerator(s, precision):
    "One on this call's device, whatever a check has left behind."
    AcceleratorState._reset_state(reset_partial_state=True)
    acc = make_accelerator(precision, cpu=s.device == 'cpu')
    if acc.device.type != s.device: raise RuntimeError(f'{acc.device} was found, not {s.device}')
    return acc


def open_state(s, cfg):
    "A state at step 0 with four batches of drawn photos."
    drawn = draw_shapes(64, size=2*cfg.size)[0]
    photos = load_photos(drawn, size=cfg.size, cuts=make_task(cfg).cuts, progress=False)
    train, valid = np.resize(np.arange(56), 4*cfg.bs), np.arange(56, 64)
    return make_state(cfg, photos, train, valid, acc=open_accelerator(s, cfg.precision))


def step_like_fit(st, batches=None):
    """One round of the loop in `trainer.fit`, its look at the losses included; with `batches` made
    ahead, as there, or each made when it is needed."""
    set_lr(st)
    batch = next(batches) if batches else fetch(st, batch_index(st), epoch=st.epoch, augment=True)
    losses = train_step(st, batch)
    st.step += 1
    st.pending.append((st.step, losses))
    if len(st.pending) >= 20:                  # numbers, so it waits for the device
        losses = [v.float() for _, found in st.pending for v in found.values()]
        _mean_over(st.acc, torch.stack(losses)).tolist()
        st.pending.clear()


def make_contiguous(batch):
    "A batch as it was before `fetch` made it channels-last."
    goals, asked = (tuple(x.contiguous() for x in xs) for xs in (batch.goals, batch.asked))
    return Sample(*(x.contiguous() for x in batch[:3]), goals, asked)


def sum_busy(events):
    "Seconds in which the device did anything, from a profiler's events; overlaps count once."
    busy, last = 0., float('-inf')
    spans = [(e.time_range.start, e.time_range.end) for e in events
             if e.device_type != torch.autograd.DeviceType.CPU
             and not getattr(e, 'is_user_annotation', False)]     # a label over kernels, no work
    for start, end in sorted(spans):
        busy += max(0., end-max(start, last))
        last = max(end, last)
    return busy/1e6


def profile_busy(s, step, n=5):
    "Seconds of each step in which the device is busy; None on a CPU."
    if s.device != 'cuda': return None
    with torch.profiler.profile() as prof:
        for _ in range(n): step()
        wait(s)
    return sum_busy(prof.events())/n


def time_product(s, precision):
    "Operations a second that a large matrix product reaches."
    n = 256 if s.toy else 8192
    x = torch.randn(n, n, device=s.device, dtype=TYPES[precision])
    return 2*n**3/time_steps(s, lambda: x@x, seconds=.5)[0]


def time_training(s, *, tf32, benchmark, channels_last, **config):
    "A training step: with the batch on the device, with `fetch` in the loop, beside a product."
    preset = config.pop('preset')
    cfg = get_preset(preset, **config, epochs=1000)
    flops = count_once(replace(cfg, bs=8, precision='no', compile=False))
    with torch_flags(tf32=tf32, benchmark=benchmark):
        if s.device == 'cuda': torch.cuda.reset_peak_memory_stats()
        st = open_state(s, cfg)
        batch = fetch(st, batch_index(st))
        if not channels_last:
            for net in st.nets: net.to(memory_format=torch.contiguous_format)
            batch = make_contiguous(batch)
        losses = {k: v.item() for k, v in train_step(st, batch).items()}
        seconds, n = time_steps(s, lambda: train_step(st, batch))
        peak = torch.cuda.max_memory_allocated()/2**30 if s.device == 'cuda' else None
        whole = ahead = busy = None            # `fetch` makes channels-last batches only
        if channels_last:
            whole = time_steps(s, lambda: step_like_fit(st))[0]
            with prefetch_batches(st) as batches:
                ahead = time_steps(s, lambda: step_like_fit(st, batches))[0]
                busy = profile_busy(s, lambda: step_like_fit(st, batches))
        product = time_product(s, cfg.precision)
    if cfg.compile: torch._dynamo.reset()
    rate, share = cfg.bs/seconds, flops*cfg.bs/seconds/product
    waits, waited = (None if busy is None else max(0., 1-busy/t) for t in (ahead, whole))
    says = f'{rate:,.0f} images/s'
    if whole: says += f', {cfg.bs/whole:,.0f} with fetch, {cfg.bs/ahead:,.0f} made ahead'
    says += f'; {share:.0%} of a matrix product'
    if peak: says += f'; {peak:.1f} GiB'
    if waits is not None: says += f'; the device waits {waits:.0%} of the time'
    return dict(says=says, n=n, images_per_s=rate, images_per_s_with_fetch=whole and cfg.bs/whole,
                flops_per_image=flops, product_flops_per_s=product, share_of_product=share,
                images_per_s_ahead=ahead and cfg.bs/ahead, waits_for_host=waits,
                waits_for_host_with_fetch=waited, peak_gib=peak, losses=losses)


def open_probe(size, width, n):
    "A fresh encoder, and drawn photos."
    photos = draw_shapes(64, size=size)[0][np.arange(n) % 64]
    return as_contender(None, size=size, width=width).build(0), photos


def time_encoding(s, *, size, width, n):
    "What the linear probe does with every photo: encode it once."
    net, photos = open_probe(size, width, n)
    read = partial(encode, net, stages=(-3, -2, -1), side=2, device=s.device, remember=False)
    read(photos[:512])
    start = time.monotonic()
    read(photos)
    rate = n/(time.monotonic()-start)
    return dict(says=f'{rate:,.0f} images/s', n=n, images_per_s=rate)


def time_tuning(s, *, size, width, n, precision):
    "Fine-tuning, from its fifth update on."
    r, ticks = Recipe(steps=1, epochs=1, bs=8 if s.toy else 128, precision=precision), []
    net, photos = open_probe(size, width, n)

    def tick(_):
        if len(ticks) == 4: wait(s)
        ticks.append(time.monotonic())
    finetune(net, photos, np.arange(n) % 10, r, classes=10, seed=0, device=s.device, tick=tick)
    wait(s)
    updates = len(ticks)-5
    rate = r.bs*updates/(time.monotonic()-ticks[4])
    return dict(says=f'{rate:,.0f} images/s', n=updates, images_per_s=rate)


# Stage 3: the paper itself

def choose_precision(s):
    "bf16 where the records say that it works, agrees and is faster; otherwise float32."
    if s.precision: return s.precision
    full, half = (s.find('speed', f"step paper-sb {32 if s.toy else 80} px, {kind}")
                  for kind in ('float32 with TF32', 'bf16'))
    works = s.find('works', 'bf16').get('status') == 'ok'
    if not works or not {full.get('status'), half.get('status')} == {'ok'}: return 'no'
    agree = all(abs(v-half['losses'][k]) < .05*max(1, abs(v)) for k, v in full['losses'].items())
    return 'bf16' if agree and half['images_per_s'] > full['images_per_s'] else 'no'


def load_squares(*, root, **how):
    "The small copies of VOC's photos as a set: val is held out, the rest is trained on."
    photos = load_photos(Path(root), **how)
    held = np.flatnonzero([name.startswith('val/') for name in photos.names])
    source = 'voc2012 (cats, dogs, horses, cows, sheep; centre squares of 240 px)'
    return replace(photos, labels=None, classes=None, held_out=held, source=source)


def name_run(s, preset):
    "A run with another number of epochs is another item, and goes on with the same folder."
    return f'{preset}, {s.epochs or (2 if s.toy else get_preset(preset).epochs)} epochs'


def list_paper(s):
    "The runs, the one that is least far first, each with its share of the time; then pictures."
    need, toy = (1, dict(size=32, width=8, bs=8)) if s.toy else (40, {})
    reached = {p: s.find('paper', name_run(s, p)).get('epochs_reached', 0) for p in PAPER}
    runs = [p for p in sorted(PAPER, key=reached.get) if not s.is_done('paper', name_run(s, p))]
    for i, preset in enumerate(runs):
        share = max(1, min(len(runs)-i, int(s.seconds_left()/need)))     # too small a part is none
        config = dict(preset=preset, epochs=int(name_run(s, preset).split()[1])) | toy
        yield Item(name_run(s, preset), need, config, partial(train_paper, s, share, **config))
    done = [f for f in (s.out/'runs'/p for p in PAPER) if (f/'weights.safetensors').exists()]
    runs = [r for r in (GANRun.load(f, device=s.device) for f in done) if r.step]
    steps = {r.cfg.preset: r.step for r in runs}
    name = f"figure 4 after {', '.join(map(str, steps.values()))} updates"
    if runs: yield Item(name, 1 if s.toy else 5, steps, partial(draw_figure, s, runs))


def save_each(seconds):
    "A hook that saves: whoever takes the GPU away may not ask before."
    last = [time.monotonic()]

    def hook(st):
        if st.event == 'step' and time.monotonic()-last[0] > seconds:
            save(st)
            last[0] = time.monotonic()
    return hook


def train_on(s, folder, data, seconds, *, preset, root=None, **fields):
    "Begin a run or go on with it, for so many seconds."
    begun, how = (folder/'config.json').exists(), dict(preset=preset) | fields
    known = json.loads((folder/'config.json').read_text())['precision'] if begun else None
    precision = s.precision or known or choose_precision(s)
    if begun: how = dict(resume=True, epochs=fields['epochs'])
    run = train_gan(data, root=root, run_dir=folder, precision=precision, progress=False,
                    accelerator=open_accelerator(s, precision), hooks=save_each(60),
                    max_minutes=max(seconds, 1)/60, **how)
    s.stopped = run.stopped == 'signal'
    return run


def describe_run(run):
    "A run's records, thinned out: the score of every evaluation, D's opinions, how far it came."
    info, metrics, epochs = run.info, run.metrics, run.cfg.epochs
    reached, last = run.step*epochs/info['steps'], metrics[-1] if metrics else {}
    says = f'{reached:.0f} of {epochs} epochs'
    if 'psnr' in last: says += f", held-out PSNR {last['psnr']:.2f} dB"
    if 'explained' in last: says += f", {last['explained']:.0%} of what is hidden explained"
    records = _Records.of(run)
    opinions = {k: records.curve(k, most=50).round(4).tolist() for k in ('d_real', 'd_fake')}
    kept = {k: info[k] for k in ('photos', 'train', 'held_out', 'bs', 'deviations', 'trivial')}
    return kept | dict(
        status='ok' if run.finished else 'part', says=says, n=run.step, epochs=epochs,
        epochs_reached=reached, precision=run.cfg.precision, metrics=metrics,
        opinions=opinions if run.cfg.lambda_adv else None,
        training_seconds=run.history[-1]['seconds'] if run.history else 0.)


def train_paper(s, share, **config):
    "One of the paper's runs, and all that is known of it afterwards."
    root, task = s.data/VOC, make_task(get_preset(config['preset']))
    size = config.get('size', get_preset(config['preset']).size)
    photos = load_photos(VOC, root=root, size=size, cuts=task.cuts, progress=False)   # not counted
    seconds = (s.seconds_left()-(1 if s.toy else 15))/share     # the rest is for what follows
    run = train_on(s, s.out/'runs'/config['preset'], VOC, seconds, root=root, **config)
    copies = measure_copies(run, photos)
    values = describe_run(run) | dict(copies=copies, encoder=export_half(s, run))
    values['says'] += ', |G-I_in| {to_input:.3f}, |G-I_r| {to_truth:.3f}'.format(**copies)
    return values


def measure_copies(run, photos):
    "Is what G paints nearer to its input or to the photo? The same for a flat mean colour."
    held = photos.take(split_photos(photos)[1])
    i_in, i_r = (to_model(held[k], run.device) for k in ('i_in', 'i_r'))
    painted, flat = generate(run.generator, i_in)[0], i_in.mean((2, 3), keepdim=True)
    def far(a, b): return (a-b).abs().mean().item()
    return dict(photos=len(i_r), to_input=far(painted, i_in), to_truth=far(painted, i_r),
                flat_to_input=far(flat, i_in), flat_to_truth=far(flat, i_r))


def export_half(s, run):
    "The encoder in 16 bits; `load_pretrained` opens it. Returns the file's name."
    p = load_pretrained(run)
    weights = p.encoder.state_dict()
    weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    path = s.out/f'{run.cfg.preset}-fp16.safetensors'
    return save_tensors(path, weights, p.config | dict(weights='float16')).name


def draw_figure(s, runs):
    "The paper's Fig. 4 on held-out photos."
    files = (s.data/VOC/'val').rglob('*')
    val = sorted(f for f in files if f.suffix.lower() in _PHOTO_SUFFIXES)
    named = {ROW_OF[r.cfg.preset]: r for r in runs}
    for n in (6, 5, 4):                        # as many photos as 200 kB hold
        some = [val[i] for i in np.linspace(0, len(val)-1, n).astype(int)]
        data, kind = draw_reconstructions(named, some).image()
        if len(data) < 200_000: break
    path = write_atomic(s.out/f'figure_4.{kind}', data)
    says = f'{path.name}, {len(data)/1000:.0f} kB'
    return dict(says=says, n=len(some), photos=[f.name for f in some])


# Stage 4: for a later day

def list_later(s):
    "Table 3's first row at full width; then `improved`, 100 passes, and what its encoder knows."
    status = {p: s.find('paper', name_run(s, p)).get('status') for p in PAPER}
    if waits := [p for p in PAPER if status[p] not in ('ok', 'failed')]:
        s.todo.append(f"later: waits for {', '.join(waits)} of stage paper")
        return
    lost = [p for p in PAPER if status[p] == 'failed']
    if lost: print(f"later: without {', '.join(lost)}, which failed")
    runs = {ROW_OF[p]: s.out/'runs'/p for p in PAPER if status[p] == 'ok'}
    how = dict(sets=[CIFAR], precision='bf16' if choose_precision(s) == 'bf16' else 'no')
    p = narrow(PROTOCOLS['paper'], modes=['paper-finetune'], **how)
    yield from list_probes(s, 'table 3', p, {'scratch': None} | runs)
    p = narrow(replace(PROTOCOLS['improved'], width=64, fields=dict(epochs=100, valid=.02)), **how)
    config = dict(preset='improved', size=p.sizes[CIFAR], width=p.width, bs=p.bs) | p.fields
    if s.toy: config |= dict(size=32, width=8, bs=8, epochs=2)
    name = f"improved, {config['epochs']} epochs"
    yield Item(name, 1 if s.toy else 40, config, partial(train_improved, s, config))
    if s.find('later', name).get('status') != 'ok': return
    rows = {'scratch': None, 'raw pixels': 'pixels', 'improved': s.out/'runs'/'improved'}
    yield from list_probes(s, 'improved', p, rows)


def train_improved(s, config):
    "The run of `improved` on the photos that will be asked about."
    folder, photos = s.out/'runs'/'improved', s.data/CIFAR/'train'
    return describe_run(train_on(s, folder, photos, s.seconds_left(), **config))


def list_probes(s, title, p, rows):
    "An item for each probe of a protocol, and for the searches of recipes before them."
    if s.toy:
        p = replace(p, width=8, sizes={CIFAR: 32}, recipes={'*': dict(steps=2, epochs=1, bs=8)},
                    blocks=tuple(replace(b, labels=(None,), seeds=1) for b in p.blocks))
    size, recipes, jobs = p.sizes[CIFAR], {'*': p.recipes.get('*', {})}, []
    images, like = find_labelled(CIFAR, size=size, root=s.data), get_preset(p.like, width=p.width)
    for b in p.blocks:
        jobs += list_jobs(rows, images, b.modes, b.labels, b.seeds, size=size, like=like,
                          recipes=recipes, search=b.search)
    jobs, out = _in_order(jobs), s.out/'probes.jsonl'
    if all(s.is_done('later', f'{title}: {j}') for j in jobs): return
    speed = _measure_speed(as_contender(None, like=like, size=size), device=s.device)
    for j in jobs:
        done = _by_key(read_jsonl(out))
        if j.search and j.search.key not in done:
            s.todo.append(f'later: {title}: {j} (waits for the search before it)')
            continue
        need, = estimate([j], jobs, done, speed)
        yield Item(f'{title}: {j}', float(need), j.known, partial(run_job, s, j, out))


def run_job(s, job, out):
    "A probe or a search. The library keeps the whole record in its own file."
    r, = run_jobs([job], out=out, device=s.device, progress=False)
    if job.kind == 'recipe': return dict(says=f"development {r['score']:.1%}", score=r['score'])
    test, train = r['test_accuracy'], r['train_accuracy']
    says = f'test {test:.1%}, train {train:.1%}'
    return dict(says=says, n=r['n_test'], test_accuracy=test, train_accuracy=train)


STAGES = dict(works=list_checks, speed=list_speeds, paper=list_paper, later=list_later)


# The command

class Parser(argparse.ArgumentParser):
    "A parser whose complaints are one sentence."
    def error(self, message): self.exit(2, f'gpu.py: {message}\n')


def make_parser():
    "The command's words."
    p = Parser('gpu.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('runs/gpu'), help='folder; default %(default)s')
    p.add_argument('--minutes', type=float, default=8, help='of this call; default %(default)s')
    p.add_argument('--stages', nargs='+', default=[*STAGES], metavar='STAGE',
                   help=f"names or numbers; all if not given: {', '.join(STAGES)}")
    p.add_argument('--data', type=Path, default=os.environ.get('RECON_NB_DATA'),
                   help=f'folder that holds {VOC} and {CIFAR}; RECON_NB_DATA if not given')
    p.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    p.add_argument('--precision', choices=(*TYPES,),
                   help='of the runs; bf16 if not given and the records say that it is faster')
    p.add_argument('--epochs', type=int, help="of the paper's runs; 1000 if not given")
    p.add_argument('--toy', action='store_true', help='all tiny: tries the script, tells nothing')
    p.add_argument('--again', action='store_true', help='try once more what failed')
    return p


def choose_stages(words):
    "Names in their order, from names or numbers, with or without commas."
    words = [w for word in words for w in word.split(',') if w]
    if not words: raise InputError(f"--stages names no stage; accepted: {', '.join(STAGES)}.")
    numbers = {str(i): name for i, name in enumerate(STAGES, 1)}
    chosen = {check_name(numbers.get(w, w), STAGES, 'stage') for w in words}
    return [name for name in STAGES if name in chosen]


def open_session(args, stages):
    "What can be wrong with a call is found here, before anything is computed."
    device, data = check_device(args.device).type, args.data and Path(args.data)
    if device == 'cpu' and not args.toy: raise InputError('a CPU needs days for this: add --toy.')
    if not args.minutes > 0: raise InputError(f'--minutes {args.minutes:g}; it must be above 0.')
    if args.epochs is not None and args.epochs < 1:
        raise InputError(f'--epochs {args.epochs}; it must be 1 or more.')
    if args.precision == 'fp16' and device == 'cpu':
        raise InputError('--precision fp16 needs a GPU.')
    for stage in stages:
        instead = f'give --data, or leave {stage} out of --stages.'
        if NEEDS[stage] and not data: raise InputError(f'stage {stage} needs photos: {instead}')
        for lost in [data/name for name in NEEDS[stage] if not (data/name).is_dir()]:
            raise InputError(f'stage {stage} needs {lost}, which is not there: {instead}')
    records = read_jsonl(args.out/'records.jsonl')
    for r in records:
        if (r['toy'], r['device'].split()[0]) != (args.toy, device):
            was = r['device'].split()[0] + ' at toy size'*r['toy']
            raise InputError(f'{args.out} has records of another kind ({was}): give another --out.')
    end = time.monotonic() + 60*args.minutes
    return Session(args.out, data, device, args.toy, end, args.epochs, args.precision, args.again,
                   records)


def say_summary(s):
    "What is in the file by now, and what another call would do. 1 if something failed."
    last = {(r['stage'], r['name']): r['status'] for r in s.records}
    for stage in STAGES:
        counts = Counter(status for (where, _), status in last.items() if where == stage)
        if counts: print(f"{stage}: {', '.join(f'{n} {k}' for k, n in counts.items())}")
    todo = ['left to do, by the same command:' if s.todo else 'nothing is left to do', *s.todo[:20]]
    if len(s.todo) > 20: todo.append(f'and {len(s.todo)-20} more')
    print(f"records: {s.out/'records.jsonl'}", '\n  '.join(todo), sep='\n')
    return int(s.broken or 'failed' in [v for (_, name), v in last.items() if name != LISTING])


def main(argv=None):
    "0 if nothing failed, 1 if something did, 2 for a wrong call, 130 if stopped by a signal."
    SETS[VOC], args = load_squares, make_parser().parse_args(argv)
    try:
        stages = choose_stages(args.stages)
        open_session(args, stages)                 # a wrong call leaves no folder
        with _locked_records(args.out/'records.jsonl'):
            s = open_session(args, stages)         # now nobody else writes
            print(f'{describe_device(s.device)}, {args.minutes:g} minutes', flush=True)
            for stage in stages: run_stage(s, stage)
            failed = say_summary(s)
    except InputError as e:
        print(f'gpu.py: {e}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped; the same command goes on')
        return 130
    return 130 if s.stopped else failed


if __name__ == '__main__': sys.exit(main())
