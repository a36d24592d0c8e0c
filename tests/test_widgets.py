"The widgets without a browser: set a value, look at what was drawn; changes that come too fast; runs that are missing, broken or growing."
import base64, datetime, io, json, re, shutil, threading, time

import numpy as np
import pytest
import torch
from PIL import Image
from recon_nb.checkpoint import load_tensors
from recon_nb.core import InputError, append_jsonl
from recon_nb.flipbook import Control, Layer, Panel, make_flipbook
from recon_nb.masks import window_size
from recon_nb.run import GANRun
from recon_nb.training import train_gan
from recon_nb.shapes import draw_shapes
from recon_nb.state import TrainState
from recon_nb.evaluation import _write_snapshot
from recon_nb.widgets import MaskExplorer, NeighbourExplorer, ReconBrowser, TrainingMonitor, _find_neighbours, _Latest, _sorts

TINY = dict(width=4, width_d=4, bs=16, size=32)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    d, scenes = tmp_path_factory.mktemp('runs'), draw_shapes(100, size=48)[0]
    return {name: train_gan(scenes, preset, run_dir=d/name, epochs=n, **TINY) for name,preset,n in (('one', 'quick', 4), ('two', 'paper-sb', 3))}


@pytest.fixture
def copy(runs, tmp_path):
    "A run to break."
    return shutil.copytree(runs['one'].dir, tmp_path/'copy')


def said(w): return re.sub('<.*?>', '', w.says.value).replace('&#x27;', "'").replace('&quot;', '"')
def drawn(w): return [np.asarray(Image.open(io.BytesIO(base64.b64decode(b)))) for b in re.findall('data:image/png;base64,([^"]+)', w.view.value)]


# --- changes that come too fast

def test_wishes_do_not_queue():
    times, value, seen = [], 0, []
    def slow(): times.append(time.monotonic()); seen.append(value); time.sleep(.05)
    latest = _Latest(slow, wait=.01)
    for value in range(100): latest(); time.sleep(.001)
    begun = time.monotonic()
    latest.settle()
    assert seen[-1] == 99 and len(seen) < 30 and time.monotonic()-begun < 2
    before = len(seen)
    latest(); latest.settle()
    assert len(seen) == before+1 and latest.thread is None                       # it can be asked again


def test_a_failing_call_does_not_block_the_next():
    done = []
    def f():
        done.append(1)
        if len(done) == 1: raise KeyError('first')
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        latest = _Latest(f, wait=.001); latest(); latest.settle()
        latest(); latest.settle()
    finally: threading.excepthook = hook
    assert len(done) == 2


def test_a_failing_call_does_not_swallow_a_waiting_wish():
    begun, waiting, done = threading.Event(), threading.Event(), []
    def f():
        done.append(1)
        if len(done) == 1: begun.set(); waiting.wait(5); raise KeyError('first')
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        latest = _Latest(f, wait=.001); latest()
        assert begun.wait(5)
        latest(); waiting.set()
        settled = threading.Thread(target=latest.settle, daemon=True); settled.start(); settled.join(5)
        assert not settled.is_alive() and len(done) == 2 and latest.thread is None
        latest(); latest.settle()
    finally: threading.excepthook = hook
    assert len(done) == 3


def test_the_last_slider_value_is_drawn():
    w, calls = MaskExplorer(), []
    draw = w._draw
    w._draw = lambda: (time.sleep(.03), calls.append(w.visible.value), draw())[-1]
    for v in np.linspace(.1, .9, 60): w.visible.value = float(v)
    w.settle()
    assert calls[-1] == .9 and len(calls) < 10
    assert (w.pictures['alpha'][...,0] == 0).sum() == window_size(80, .9)**2


# --- MaskExplorer

def test_mask_explorer_draws_what_the_sliders_say():
    w = MaskExplorer()
    assert len(drawn(w)) == 6 and said(w) == ''
    for v,x,y in ((.2, 0., 0.), (.5, -1., 1.), (.7, .5, -.5)):
        w.visible.value, w.across.value, w.down.value = v, x, y
        w.settle()
        seen, side = w.pictures['alpha'][...,0] == 0, window_size(80, v)
        rows, cols = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        assert len(rows) == len(cols) == side and abs(rows[0]-(80-side)/2*(1+y)) <= 1 and abs(cols[0]-(80-side)/2*(1+x)) <= 1
        assert (w.pictures['i_f'][seen] == w.pictures['photo'][seen]).all() and (w.pictures['beta'][~seen] == 128).all()
        assert (drawn(w)[2] == w.pictures['alpha']).all()
    zoomed = w.pictures['i_in']
    w.sees.value = 'canvas'; w.settle()
    assert (w.pictures['i_in'][seen] == w.pictures['photo'][seen]).all() and (w.pictures['i_in'] != zoomed).any()


def upload(name, content): return dict(name=name, type='image/png', size=len(content), content=memoryview(content), last_modified=datetime.datetime.now())


def test_photos_are_uploaded_and_other_files_refused():
    w, buf = MaskExplorer(), io.BytesIO()
    n = w.photo.max
    Image.fromarray(draw_shapes(1, size=100, seed=77)[0][0]).resize((150, 90)).save(buf, 'PNG')
    w.upload.value = (upload('mine.png', buf.getvalue()),)
    w.settle()
    assert (w.photo.max, w.photo.value, said(w)) == (n+1, n+1, '')
    mine = w.pictures['photo']
    w.upload.value = (upload('notes.txt', b'no photo at all'),)
    w.settle()
    assert said(w) == 'notes.txt is not a photo that can be read.' and (w.pictures['photo'] == mine).all()


def test_photos_are_counted_from_one_everywhere(runs):
    photos = draw_shapes(3, size=60, seed=50)[0]
    for w in (MaskExplorer(photos), ReconBrowser(runs, photos=photos)): assert (w.photo.min, w.photo.value, w.photo.max) == (1, 1, 3)
    w = MaskExplorer(photos, size=32)
    for k in (1, 3):
        w.photo.value = k; w.settle()
        assert (w.pictures['photo'] == MaskExplorer(photos[k-1], size=32).pictures['photo']).all()


def test_wrong_photos_are_a_sentence(tmp_path):
    assert 'there is no such file' in said(MaskExplorer('no/such/photo.png'))
    assert 'no photo in' in said(MaskExplorer(tmp_path))
    assert 'uint8' in said(MaskExplorer(np.zeros((8, 8, 3))))


# --- ReconBrowser

def test_recon_browser_shows_what_the_trainer_kept(runs):
    w = ReconBrowser(runs)
    epochs, painted = runs['one'].snapshots()
    held = runs['one'].held_out()
    assert w.epoch.options == tuple(epochs) and w.photo.max == len(held.i_r)
    for sort in _sorts:
        for k in (1, 3):
            w.sort.value, w.photo.value, w.epoch.value = sort, k, epochs[0]
            w.settle()
            p, i = w.pictures['one'], w.order()[k-1]
            assert (p['i_r'] == held.i_r[i]).all() and (p['output'] == painted[0,i]).all() and (drawn(w)[3] == held.i_r[i]).all()
            assert (p['composed'][~held.hidden[i]] == held.i_r[i][~held.hidden[i]]).all() and (p['composed'][held.hidden[i]] == painted[0,i][held.hidden[i]]).all()
    w.sort.value, w.epoch.value = 'largest error first', epochs[-1]; w.settle()
    assert (np.diff(np.mean([r.psnr[-1] for r in w.runs], 0)[w.order()]) >= 0).all()         # the lowest PSNR first
    assert 'two</b>, epoch 3' in w.view.value                                             # no later look: the last one


def test_runs_that_are_missing_or_broken(runs, copy, tmp_path):
    (tmp_path/'empty').mkdir()
    old = shutil.copytree(copy, tmp_path/'old')
    for f in (old/'samples').glob('*.webp'): f.unlink()
    cut = copy/'samples'/'epoch-0002.webp'
    cut.write_bytes(cut.read_bytes()[:60])
    w = ReconBrowser([runs['two'], tmp_path/'nowhere', tmp_path/'empty', old, copy])
    assert [r.name for r in w.runs] == ['two'] and len(drawn(w)) == 5
    for part in ('nowhere', 'no weights.safetensors', 'no snapshots', 'epoch-0002.webp is damaged'): assert part in said(w) and part in w.static(), part
    nothing = ReconBrowser(tmp_path/'nowhere')
    assert 'there is no folder' in said(nothing)
    with pytest.raises(InputError, match='no folder'): nothing.static()
    assert 'no runs' in said(ReconBrowser([]))


def test_photos_of_my_own(runs):
    mine = draw_shapes(3, size=60, seed=50)[0]
    w = ReconBrowser(runs, photos=mine)
    r = runs['one'].reconstruct(mine)
    assert w.photo.max == 3 and len(w.epoch.options) == 2                                 # each run as it is now
    i = w.order()[0]
    assert 'your photos' in w.view.value and 'held-out' not in w.view.value and 'held-out' not in w.static() and 'one of your photos' in w.static()
    assert (w.pictures['one']['output'] == r.painted[i]).all() and (w.pictures['one']['composed'] == r.composed[i]).all()


# --- snapshots

def test_snapshots_survive_a_stop_and_change_nothing(runs, tmp_path):
    scenes = draw_shapes(100, size=48)[0]
    def stop(st): st.stop = st.step == 12
    train_gan(scenes, 'quick', run_dir=tmp_path/'r', epochs=4, hooks=stop, **TINY)
    again = train_gan(scenes, run_dir=tmp_path/'r', resume=True)
    a, b = (load_tensors(r.dir/'weights.safetensors')[0] for r in (runs['one'], again))
    assert all(torch.equal(a[k], b[k]) for k in a)
    (e,p), (f,q) = runs['one'].snapshots(), again.snapshots()
    assert e == f == [1, 2, 3, 4] and (p == q).all()


def test_snapshots_are_small(tmp_path):
    photos = draw_shapes(16, size=80)[0]
    rough = np.clip(photos + np.random.default_rng(0).normal(0, 20, photos.shape), 0, 255).astype(np.uint8)      # as an early generator paints
    _write_snapshot(tmp_path, 1, rough, (photos, photos, photos))
    held, look = ((tmp_path/f'{n}.webp').stat().st_size for n in ('held-out', 'epoch-0001'))
    assert held + 16*look < 2_000_000, (held, look)


# --- TrainingMonitor

def wait_for(ask, seconds=20):
    end = time.monotonic()+seconds
    while not ask() and time.monotonic() < end: time.sleep(.02)
    assert ask()


def test_the_stop_button_saves(tmp_path):
    scenes, m = draw_shapes(100, size=48)[0], TrainingMonitor(every=.05, show=False)
    assert 'waiting for a run' in said(m) and m.button.disabled
    m.train(scenes, run_dir=tmp_path/'r', epochs=2000, **TINY)
    with pytest.raises(InputError, match='in progress'): m.train(scenes)
    wait_for(lambda: 'losses: L_D' in m.view.value)                                      # curves while it runs
    assert not m.button.disabled
    m.button.click()
    run = m.wait()
    assert run.stopped == 'hook' and 0 < run.step < run.info['steps'] and run.history[-1]['step'] == run.step == GANRun.load(run.dir).step
    assert m.button.disabled and f'stopped at step {run.step:,}, and saved' in m.view.value and said(m) == ''


def test_a_monitor_changes_nothing(runs, tmp_path):
    run = train_gan(draw_shapes(100, size=48)[0], 'quick', run_dir=tmp_path/'r', epochs=4, hooks=TrainingMonitor(every=0., show=False), **TINY)
    a, b = (load_tensors(r.dir/'weights.safetensors')[0] for r in (runs['one'], run))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_wrong_call_is_said_and_raised():
    m = TrainingMonitor(show=False).train('no/such/folder')
    with pytest.raises(InputError, match='no/such/folder'): m.wait()
    assert 'no/such/folder' in said(m)
    with pytest.raises(InputError, match='call train'): TrainingMonitor(show=False).wait()


def test_a_run_that_appears_grows_and_is_damaged(runs, tmp_path):
    source, d = runs['one'].dir, tmp_path/'r'
    m = TrainingMonitor(d, every=.03)
    try:
        assert 'there is no folder' in said(m) and m.button.layout.display == 'none'
        d.mkdir()
        wait_for(lambda: 'holds no run.json' in said(m))
        (d/'run.json').write_text('{"steps": ')
        wait_for(lambda: 'is damaged' in said(m))
        shutil.copy(source/'run.json', d)
        wait_for(lambda: 'step 0 of' in m.view.value and said(m) == '')
        rows = [json.loads(line) for line in (source/'history.jsonl').read_text().splitlines()]
        append_jsonl(d/'history.jsonl', *rows[:7])
        with open(d/'history.jsonl', 'a') as f: f.write(json.dumps(rows[7])[:20])            # half a line
        wait_for(lambda: 'step 7 of' in m.view.value)
        with open(d/'history.jsonl', 'a') as f: f.write(json.dumps(rows[7])[20:]+'\n')
        wait_for(lambda: 'step 8 of' in m.view.value)
        (d/'history.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows[:3]))        # cut back by a resume
        wait_for(lambda: 'step 3 of' in m.view.value)
        append_jsonl(d/'history.jsonl', *rows[3:])
        wait_for(lambda: 'finished' in m.view.value)
    finally: m.close()


def new_threads(before): return {t for t in threading.enumerate() if t.is_alive()} - before


def test_a_cell_that_is_run_again_leaves_no_thread(runs, tmp_path):
    before, missing = {*threading.enumerate()}, tmp_path/'later'
    monitors = [TrainingMonitor(missing, every=.02) for _ in range(3)]                   # nothing there yet: they would wait
    wait_for(lambda: len(new_threads(before)) == 1)                                        # of three, the last looks on
    assert [m.poller.is_alive() for m in monitors] == [False, False, True]
    assert all('a newer monitor shows this run' in said(m) for m in monitors[:2]) and 'there is no folder' in said(monitors[2])
    shutil.copytree(runs['one'].dir, missing)
    wait_for(lambda: 'finished' in monitors[2].view.value)
    wait_for(lambda: not new_threads(before))                                       # a finished run needs no thread


def test_a_run_that_was_stopped_is_not_polled_for_ever(copy):
    rows = (copy/'history.jsonl').read_text().splitlines(keepends=True)
    (copy/'history.jsonl').write_text(''.join(rows[:5]))
    before = {*threading.enumerate()}
    m = TrainingMonitor(copy, every=.02, patience=.5)
    time.sleep(.3)
    with open(copy/'history.jsonl', 'a') as f: f.write(rows[5])                          # it goes on: patience begins anew
    wait_for(lambda: 'step 6 of' in m.view.value)
    assert m.poller.is_alive()
    wait_for(lambda: not m.poller.is_alive())
    wait_for(lambda: not new_threads(before))
    assert 'nothing new for' in said(m) and 'step 6 of' in m.view.value


def test_no_folder_nothing_to_show():
    m, st = TrainingMonitor(show=False), object.__new__(TrainState)
    st.event, st.run_dir, st.stop = 'begin', None, False
    m(st); m.update()
    assert 'writes no run folder' in said(m)
    with pytest.raises(InputError): m.static()


# --- NeighbourExplorer

def test_neighbours(runs):
    x, y = draw_shapes(50, size=32)
    w = NeighbourExplorer({'px': 'pixels', 'one': runs['one'], 'lost': 'no/such/run'}, x, labels=list(y), shown=10, k=4)
    assert 'lost: ' in said(w) and list(w.near) == ['px', 'one'] and len(w.buttons) == 10
    w.buttons[7].click(); w.settle()
    pictures = drawn(w)
    assert (pictures[0] == x[7]).all() and len(pictures) == 1+2*4
    for row,name in enumerate(w.near):
        assert all((pictures[1+4*row+r] == x[j]).all() for r,j in enumerate(w.near[name][7]))
    assert [near.shape for near in w.near.values()] == [(10,4)]*2                        # only those that can be clicked
    with pytest.raises(InputError, match='0 to 9'): w.choose(10)
    twin = _find_neighbours(runs['one'], np.concatenate([x, x[3:4]]), k=2)
    assert twin.shape == (51,2) and twin[3,0] == 50 and twin[50,0] == 3                   # a copy is the nearest
    assert 'no/such' in said(NeighbourExplorer('no/such/run', x))


def test_figures_and_widgets_find_the_same_neighbours(runs):
    from recon_nb.figures import draw_neighbours
    x, _ = draw_shapes(40, size=32, seed=4)
    grid = np.concatenate([x, x[:5]//2+64])                                              # what all share must not count
    for e in ('pixels', runs['one'], runs['two'].encoder):
        near = _find_neighbours(e, grid, k=5)
        for q in (0, 7, 44):
            drawn = [im.get_array() for im in draw_neighbours(e, grid, q, k=5).axes[0].get_images()]
            assert (np.stack(drawn[1:]) == grid[near[q]]).all(), (e, q)
    f = grid.reshape(len(grid), -1)/127.5
    f = f-f.mean(0)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    cosines = f@f.T-3*np.eye(len(f))
    assert (_find_neighbours('pixels', grid, k=1)[:,0] == cosines.argmax(1)).all()        # by hand, the mean subtracted


# --- static forms

def test_static_forms_are_small_and_fetch_nothing(runs):
    x, y = draw_shapes(40, size=32)
    books = [MaskExplorer().static(), ReconBrowser(runs).static(), TrainingMonitor(runs['one'].dir).static(), NeighbourExplorer(['pixels', runs['one']], x, labels=list(y)).static()]
    books += [MaskExplorer().static()]
    for b in books:
        assert len(b) < 1_000_000 and '\n\n' not in b and b._repr_html_() == b
        assert not re.search(r'(?:src|href)=|https?:|@import|fetch\(', b.replace('http://www.w3.org', ''))
        assert all(re.findall('role="img" aria-label="([^"]*)"', b)) and 'role="img"' in b
    ids = re.findall(' id="([^"]+)"', ''.join(books))
    assert len(set(ids)) == len(ids) == len(books)


def test_labels_are_text_not_html():
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    book = make_flipbook('<b>"', dict(a=Control('<i>', ('<script>', '</script>'))), [Panel('<u>', (Layer(frames, ('a',)),), np.array(['<s>', '</script>']), ('a',))])
    assert not re.search('<(b|i|u|s)>(?!<)', book.replace('<i></i>', '').replace('<i>&lt;', '')) and book.count('<script>') == book.count('</script>') == 1


def test_charts_of_a_run_that_predicts_no_pictures():
    from recon_nb.compare import _Records
    from recon_nb.widgets import _charts
    info, history, metrics = dict(train=20, bs=10), [dict(step=2, epoch=0, seconds=1., loss_g=.1, idt=.1)], [dict(step=2, epoch=1, n=4, l1=.2, explained=.07)]
    html = _charts(_Records(history, metrics, info), [])
    assert 'held-out share explained, % (more is better): explained 7"' in html and 'PSNR' not in html and 'L_D' not in html
    mine = _charts(_Records(history, [dict(step=2, epoch=1, n=4, sharpness=.2)], info), [])
    assert 'held-out sharpness' in mine                                                  # a target of one's own with a score of its own
    few = _charts(_Records(history, metrics, dict(train=3, bs=10)), [])                   # fewer photos than a batch
    assert 'L_idt 0.1' in few
