"What `tests/soak.py` holds, shortly: training with everything that looks on, and `recon-embed`, again and again. And that its bounds would notice."
import mmap, sys, threading

import pytest
import torch

import soak

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='soak.py looks into /proc')


def rounds(work, n=30): return soak.again(work, soak.Notes(0, n, lambda *a, **k: None))


def test_what_grows_is_noticed(tmp_path):
    kept, stop = [], threading.Event()
    def timed(rows, seconds=.2): return [dict(r, seconds=k*seconds) for k,r in enumerate(rows)]          # a busy machine would make the growth look slow
    def take(k):                                             # from the system: what Python has freed before would hide it
        kept.append(mmap.mmap(-1, 400_000))
        kept[-1].write(b'x'*400_000)
    grown, found = soak.judge(timed(rounds(take)))
    assert [g.split()[0] for g in grown] == ['memory'] and 300 < found['kb_a_round'] < 500
    kept.clear()
    grown, _ = soak.judge(timed(rounds(lambda k: kept.append(open(tmp_path/f'{k}', 'w')))))
    assert [g.split()[0] for g in grown] == ['files']
    for f in kept: f.close()
    def start(k): threading.Thread(target=stop.wait, daemon=True).start()
    grown, _ = soak.judge(timed(rounds(start)))
    assert {'threads', 'tasks'} <= {g.split()[0] for g in grown}
    stop.set()


def test_what_stays_passes():
    grown, found = soak.judge([dict(r, seconds=k/5) for k,r in enumerate(rounds(lambda k: bytearray(4_000_000)))])
    assert grown == [] and found['rounds'] == 30


@pytest.mark.slow
@pytest.mark.parametrize('part', soak.PARTS)
def test_a_short_soak(part, monkeypatch):
    import recon_nb.training
    monkeypatch.setattr(recon_nb.training, 'fit', recon_nb.training.fit)         # put back afterwards
    monkeypatch.setenv('RECON_NB_CACHE', '')
    grown, found = soak.soak(part, 1.5, rounds=12, say=lambda *a, **k: None)
    assert not grown, found


def test_reading_a_file_of_tensors_again_and_again_keeps_nothing(tmp_path):
    "`safe_open` of safetensors 0.8 keeps 57 bytes of each tensor it gives: 170 kB here."
    import tracemalloc
    from recon_nb.checkpoint import load_tensors, save_tensors
    f = save_tensors(tmp_path/'t.safetensors', {f'{k}': torch.zeros(4, 3) for k in range(30)}, {})
    load_tensors(f)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100): load_tensors(f)
        assert tracemalloc.get_traced_memory()[0] - before < 40_000
    finally: tracemalloc.stop()
