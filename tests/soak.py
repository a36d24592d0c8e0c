"""The same work again and again: memory, open files and threads may not grow.

    python tests/soak.py train --minutes 60    # one run with a hook, a monitor, TensorBoard and an online probe, saved every second
    python tests/soak.py embed --minutes 30    # recon-embed over one folder of photos
    python tests/soak.py train embed           # both, 15 minutes each

What the process holds is noted after each round: an epoch, or a call of recon-embed. The first third of the rounds is for caches to fill, and a line is fitted
through the rest. A part passes if memory grows by less than a megabyte a minute, and no file or thread is left over. Linux only: it reads /proc.
Ends with a line of JSON a part."""
import argparse, gc, json, os, sys, tempfile, threading, time, warnings
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['MPLBACKEND'] = 'Agg'

MB_A_MINUTE = 1.


def held():
    "Resident memory in MB, open files, threads (Python's and all)."
    gc.collect()
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return dict(mb=pages*os.sysconf('SC_PAGE_SIZE')/1e6, files=len(os.listdir('/proc/self/fd')), threads=threading.active_count(), tasks=len(os.listdir('/proc/self/task')))


def line(x, y):
    "The slope through points, as Theil and Sen have it: the median of all pairs' slopes, which one jump does not move."
    slopes = sorted((b-a)/(u-t) for i,(t,a) in enumerate(zip(x, y)) for u,b in [*zip(x, y)][i+1:] if u > t)
    return slopes[len(slopes)//2] if slopes else 0.


def judge(rows):
    "What has grown, in sentences; and the figures."
    late = rows[len(rows)//3:]
    minutes, mb = [r['seconds']/60 for r in late], [r['mb'] for r in late]
    a_minute, a_round = line(minutes, mb), 1000*line([r['round'] for r in late], mb)
    grown = []
    if a_minute >= MB_A_MINUTE: grown.append(f'memory grows by {a_minute:.2f} MB a minute, {a_round:.0f} kB a round')
    for k in ('files', 'threads', 'tasks'):
        few, many = (sorted(r[k] for r in part)[len(part)//2] for part in (late[:len(late)//3 or 1], late[-(len(late)//3 or 1):]))
        if many > few: grown.append(f'{k} grow from {few} to {many}')
    return grown, dict(rounds=len(rows), mb_a_minute=round(a_minute, 3), kb_a_round=round(a_round, 1), first_mb=round(rows[0]['mb'], 1), last_mb=round(rows[-1]['mb'], 1),
                       files=[late[0]['files'], late[-1]['files']], threads=[late[0]['threads'], late[-1]['threads']])


class Notes:
    "What is held after each round, and whether there have been enough of them."
    def __init__(self, minutes, rounds, say): self.rows, self.minutes, self.rounds, self.say, self.begun = [], minutes, rounds, say, time.monotonic()
    def __call__(self):
        self.rows.append(dict(round=len(self.rows), seconds=time.monotonic()-self.begun, **held()))
        if len(self.rows) % 10 == 1: self.say(json.dumps(self.rows[-1]), flush=True)
    def enough(self): return len(self.rows) >= self.rounds and time.monotonic()-self.begun >= 60*self.minutes


def again(work, notes):
    "Rounds of some work."
    while not notes.enough(): work(len(notes.rows)); notes()
    return notes.rows


def training(home, notes):
    "A round is an epoch of one run that everything looks at."
    import functools
    import recon_nb.trainer, recon_nb.training
    from recon_nb.labelled import LabelledSet
    from recon_nb.online import OnlineProbe
    from recon_nb.shapes import SHAPES, draw_shapes
    from recon_nb.tensorboard import TensorBoardHook
    from recon_nb.widgets import TrainingMonitor
    (x, _), (a, b), (c, d) = (draw_shapes(n, size=32, seed=s) for n,s in ((96, 0), (60, 1), (60, 2)))
    labelled = LabelledSet(name='scenes', train_x=a, train_y=b, test_x=c, test_y=d, classes=tuple(SHAPES))
    recon_nb.training.fit = functools.partial(recon_nb.trainer.fit, save_every=1., read_every=3)
    def hook(st):
        if st.event == 'epoch': notes()
        st.stop = st.stop or notes.enough()
    monitor = TrainingMonitor(every=.1, show=False)
    hooks = [hook, monitor, TensorBoardHook(), OnlineProbe(labelled, every=1, labels_per_class=3, judged=20)]
    run = recon_nb.training.train_gan(x, run_dir=home/'run', hooks=hooks, progress=False, width=4, width_d=4, size=32, bs=8, epochs=100_000, schedule='constant')
    assert run.stopped == 'hook', run.stopped
    return notes.rows


def embedding(home, notes):
    "A round: `recon-embed` over the same sixty photos."
    from PIL import Image
    from recon_nb import cli
    from recon_nb.shapes import draw_shapes
    from recon_nb.training import train_gan
    (home/'photos').mkdir()
    for k,im in enumerate(draw_shapes(60, size=48, seed=5)[0]): Image.fromarray(im).save(home/f'photos/{k}.jpg')
    train_gan(draw_shapes(24, size=32)[0], run_dir=home/'run', progress=False, width=4, width_d=4, size=32, bs=8, epochs=1)
    def work(k):
        with open(os.devnull, 'w') as out, redirect_stdout(out): assert cli.embed([str(home/'run'), str(home/'photos'), '-o', str(home/'f.npy'), '--device', 'cpu']) == 0
    return again(work, notes)


PARTS = dict(train=training, embed=embedding)


def soak(part, minutes, rounds=3, say=print):
    "Rounds of a part; what has grown, and the figures."
    import torch
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        os.environ['RECON_NB_CACHE'] = f'{d}/cache'
        rows = PARTS[part](Path(d), Notes(minutes, rounds, say))
    grown, found = judge(rows)
    return grown, dict(part=part, minutes=round(rows[-1]['seconds']/60, 1), **found)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='+', choices=PARTS)
    p.add_argument('--minutes', type=float, default=15.)
    args, bad = p.parse_args(argv), 0
    for part in args.parts:
        grown, found = soak(part, args.minutes)
        print(json.dumps(dict(found, grown=grown)), flush=True)
        bad += bool(grown)
    return bad > 0


if __name__ == '__main__': sys.exit(main())
