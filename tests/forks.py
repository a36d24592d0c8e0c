"""A parent that has imported everything and forks a child for each job: torch is paid for once, and a child can be killed at any moment.

For test_stop_anywhere.py, on Linux. Reads a job a line as JSON, `{"job": name, ...}`, and answers with the child's process id; `{"wait": pid}` answers with
its exit status (negative: the signal that ended it). The parent computes nothing and has no threads: a fork would not survive either."""
import builtins, errno, functools, gc, io, itertools, json, os, random, re, signal, sys, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

torch.set_num_threads(1)
import PIL.JpegImagePlugin, PIL.PngImagePlugin, filelock, torchmetrics.functional.image  # noqa: F401  (warmed up for the children)
import recon_nb.cli, recon_nb.data, recon_nb.photos, recon_nb.run, recon_nb.trainer, recon_nb.training  # noqa: F401
from recon_nb.labelled import LabelledSet
from recon_nb.online import OnlineProbe
from recon_nb.tensorboard import TensorBoardHook

SCENES = dict(np.load(sys.argv[1]))            # drawing them here would start a thread
PHOTOS = SCENES.pop('photos')
LABELLED = LabelledSet(name='scenes', classes=tuple('0123456789'), **SCENES)
TINY = dict(width=4, size=32, dropout=0.5)


class Points:
    """Every moment at which the files below `root` change: before a file is opened, before, within and after a write, before a sync, before and
    after a rename. Each is a line in the file `notes`. At point number `at`, or at the `nth` that is called `label`, the process dies, or from there
    on the disk is full."""
    def __init__(self, root, notes, at=None, label=None, nth=1, how='kill'):
        self.root, self.at, self.label, self.nth, self.how, self.n, self.full = str(Path(root).resolve())+os.sep, at, label, nth, how, 0, False
        self.notes = os.open(notes, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)

    def point(self, what, name):
        path = os.path.abspath(os.fspath(name)) if isinstance(name, (str, os.PathLike)) else ''
        if not path.startswith(self.root) or os.sep+'tensorboard'+os.sep in path or path.endswith('.lock'): return
        said = f'{what} {re.sub(r"[.]([0-9]+|[0-9]+_[0-9a-f]+)[.]tmp", ".tmp", path[len(self.root):])}'       # without process ids
        os.write(self.notes, f'{said}\n'.encode())
        self.n += 1
        if self.label: self.nth -= said == self.label
        here = self.nth == 0 if self.label else self.n == self.at
        if here and self.how == 'kill': os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)     # the signal may take a moment
        self.full = self.full or here
        if self.full and what in ('open', 'half', 'fsync'): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self):
        import torch.distributed.fsdp  # noqa: F401                                    # accelerate 1.0 imports it late, and then it writes a file of its own
        points, true_open = self, io.open
        class File(io.FileIO):
            def write(self, b):
                b = memoryview(b).cast('B')
                points.point('write', self.name)
                n = super().write(b[:len(b)//2])
                points.point('half', self.name)
                return n + super().write(b[n:])
        def opened(file, mode='r', *args, **kwargs):
            if isinstance(file, int) or not set(mode) & set('wax+'): return true_open(file, mode, *args, **kwargs)
            points.point('open', file)
            raw = File(file, mode.replace('b', ''))
            return io.BufferedRandom(raw) if '+' in mode else io.BufferedWriter(raw)
        def sync(fd, true=os.fsync): points.point('fsync', os.readlink(f'/proc/self/fd/{fd}')); true(fd)
        def moves(true):
            def move(a, b, **kwargs): points.point('rename', b); true(a, b, **kwargs); points.point('renamed', b)
            return move
        builtins.open = io.open = opened
        os.fsync, os.replace, os.rename = sync, moves(os.replace), moves(os.rename)


def disturb(st):
    "A hook that draws numbers from every generator and sends numbers through both networks."
    torch.manual_seed(random.randrange(99)); np.random.seed(random.randrange(99))
    with torch.no_grad():
        painted, *_ = st.gen(torch.rand(3, 3, st.cfg.size, st.cfg.size))
        if st.disc is not None: st.disc(painted)


def hooks(names, trace):
    fd = os.open(trace, os.O_WRONLY|os.O_CREAT|os.O_APPEND)
    def note(st): os.write(fd, f'{st.event} {st.step} {time.monotonic()}\n'.encode())      # one write: whole, or not there
    made = [note]
    if 'disturb' in names: made.append(disturb)
    if 'probe' in names: made.append(OnlineProbe(LABELLED, every=1, labels_per_class=3, judged=20))
    if 'tensorboard' in names: made.append(TensorBoardHook())
    return made


def train(*, run_dir, trace, hook_names=(), data='array', save_every=0.1, real_time=True, points=None, **options):
    "Begin, or go on with, a run in `run_dir`. Without `real_time`, the loop's seconds are looks at the clock: three a step, however busy the machine is."
    run_dir = Path(run_dir)
    recon_nb.training.fit = functools.partial(recon_nb.trainer.fit, save_every=save_every, read_every=3)
    if not real_time:
        recon_nb.training.estimate_cost = lambda st: (0., 0)                                    # its trial steps touch no file
        recon_nb.trainer.time = SimpleNamespace(monotonic=map(float, itertools.count()).__next__)
    if points: Points(run_dir, **points).install()
    if data == 'array': data = PHOTOS
    if (run_dir/'config.json').exists(): options = dict(resume=True)                       # as a person would look
    else: options = {**TINY, **options}
    recon_nb.training.train_gan(data, run_dir=run_dir, hooks=hooks(hook_names, trace), **options)


def cut(*, folder, cache, size=32, points=None):
    "Cut the photos of a folder, as `train_gan` does; says what came out."
    os.environ['RECON_NB_CACHE'] = cache
    if points: Points(recon_nb.photos._cache_dir(), **points).install()
    p = recon_nb.data.load_photos(folder, size=size, cuts=dict(i_r=1., i_in=1/3), workers=1, progress=False)
    print(json.dumps([p.names, {k: np.asarray(a).tobytes().hex() for k,a in p.cuts.items()}]))


def command(*, argv, save_every=0.1, points=None, root=None):
    "`recon-train` with the arguments `argv`; ends with its exit status."
    recon_nb.training.fit = functools.partial(recon_nb.trainer.fit, save_every=save_every, read_every=3)
    if points: Points(root, **points).install()
    sys.exit(recon_nb.cli.train(argv))


def reconstruct(*, run_dir):
    r = recon_nb.run.GANRun.load(run_dir).reconstruct(PHOTOS[:3])
    print(json.dumps([a.tobytes().hex() for a in r]))


def events(*, folder):
    "What TensorBoard's own reader finds: tag -> steps and values."
    import logging
    logging.getLogger('tensorboard').setLevel(logging.ERROR)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(folder, size_guidance=dict(scalars=0)).Reload()
    print(json.dumps({tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()['scalars']}))


JOBS = dict(train=train, cut=cut, command=command, reconstruct=reconstruct, events=events)


def child(job, said, options):
    fd = os.open(said, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    os.dup2(fd, 1); os.dup2(fd, 2); os.close(0)
    signal.alarm(120)                    # no job takes that long; better a dead one than a test that waits
    status = 70
    try: JOBS[job](**options); status = 0
    except SystemExit as e: status = e.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(status)


def main():
    assert len(os.listdir('/proc/self/task')) == 1, 'a thread would not survive the fork'
    gc.collect(); gc.freeze()            # what is here stays: a child's collector need not walk through it
    print(json.dumps('ready'), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if 'wait' in asked: answer = os.waitstatus_to_exitcode(os.waitpid(asked['wait'], 0)[1])
        else:
            answer = os.fork()
            if not answer: child(asked.pop('job'), asked.pop('said'), asked)
        print(json.dumps(answer), flush=True)


if __name__ == '__main__': main()
