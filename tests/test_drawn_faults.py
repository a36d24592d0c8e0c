"""What survived among the faults that nobody chose (`tests/mutants/drawn.py`), and a test against each kind of it.

The drawn sets are held to small copies, so that no constant of a scene can change unnoticed. Made anew, after a change on purpose:

    python tests/test_drawn_faults.py"""
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from recon_nb import download as dl, records
from recon_nb.boxed import _draw_objects
from recon_nb.core import InputError
from recon_nb.experiments import Job
from recon_nb.identity import _hash_bytes, _hash_file, _hash_pixels
from recon_nb.segmented import _draw_collages
from recon_nb.shapes import draw_shapes
from recon_nb.task import _check_range

FILE = Path(__file__).parent/'fixtures/drawn_sets.npz'
N = 100                      # ten of each class


def small(x): # 32 px -> 8 px, means
    return x.reshape(len(x), 8, 4, 8, 4, 3).mean((2, 4))


def drawn():
    "All three drawn sets, small; of the boxes their sizes, places and classes."
    x, y = draw_shapes(N, size=32, seed=11)
    part, _ = draw_shapes(20, size=32, seed=11, share=1/3)
    pictures, boxes = _draw_objects(N, size=32, seed=11)
    collages, masks = _draw_collages(40, size=32, seed=11)
    return dict(shapes=small(x), labels=y, parts=small(part), objects=small(pictures), counts=np.array([len(b) for b in boxes]), boxes=np.concatenate(boxes),
                collages=small(collages), masks=np.array([np.bincount(m.ravel(), minlength=10) for m in masks]))


@pytest.fixture(scope='module')
def now(): return drawn()


@pytest.fixture(scope='module')
def kept(): return dict(np.load(FILE))


@pytest.mark.parametrize('part', ['shapes', 'parts', 'objects', 'collages'])
def test_the_drawn_pictures_are_those_of_before(part, now, kept):
    "Means over four pixels, in levels of 255: other versions of NumPy round differently, and less than that."
    away = abs(now[part]-kept[part].astype(float)).mean((1, 2, 3))
    assert away.max() < 1, f'picture {away.argmax()} is another'


@pytest.mark.parametrize('part', ['labels', 'counts'])
def test_so_are_their_labels(part, now, kept): assert np.array_equal(now[part], kept[part])


def test_so_are_boxes_and_masks(now, kept):
    np.testing.assert_allclose(now['boxes'], kept['boxes'], atol=.51)
    assert abs(now['masks'].astype(int)-kept['masks']).max() < 12              # pixels of 1024 at the edge of a blob


@pytest.mark.parametrize('draw', [_draw_objects, _draw_collages])
def test_another_seed_draws_other_scenes(draw):
    "Scenes, and not only what lies on them: the corner of no picture is that of the same picture by another seed."
    a, b = (draw(12, size=32, seed=s)[0][:,:4,:4].astype(int) for s in (3, 4))
    assert all(abs(x-y).mean() > 2 for x,y in zip(a, b))


def test_hashes_fit_into_64_bits(tmp_path):
    for k in range(64):
        data = bytes([k])*99
        (tmp_path/'f').write_bytes(data)
        assert 0 < _hash_bytes(data) == _hash_file(tmp_path/'f') < 2**64
        assert 0 < _hash_pixels(np.full((3, 3, 3), k, np.uint8)) < 2**64


def test_eight_histories_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(records, '_known', {})
    for k in range(20):
        (tmp_path/f'{k}.jsonl').write_text('{"step": 1}\n')
        assert records.read_rows(tmp_path/f'{k}.jsonl') == [{'step': 1}]
    assert len(records._known) == 8 and str(tmp_path/'19.jsonl') in {str(k) for k in records._known}


def test_old_bytes_go_before_the_note_says_of_which_file_they_are(tmp_path, monkeypatch):
    "Killed in between, a download would go on behind another file's bytes."
    part = tmp_path/'.f.part'
    part.write_bytes(b'of another file')
    class Answer:
        headers = {}
        def __enter__(self): return self
        def __exit__(self, *_): pass
    monkeypatch.setattr(dl, '_ask', lambda *a: (Answer(), 0, 10))
    monkeypatch.setattr(dl, '_tag', lambda headers: 'v2')
    monkeypatch.setattr(dl, '_kept', lambda part: (0, dict(total=None)))
    class Killed(BaseException): pass
    def killed(*a): raise Killed
    monkeypatch.setattr(dl, 'write_atomic', killed)
    with pytest.raises(Killed): dl._request('http://x', part, size=10, timeout=1, bar=None)
    assert not part.exists()


@pytest.mark.parametrize('low, high', [(-1.01, 1.), (-1., 1.01), (-1.9, .5), (-.5, 1.9)])
def test_a_picture_beyond_black_or_white_is_refused(low, high):
    with pytest.raises(InputError, match=r'a picture lies in \[-1, 1\]'): _check_range('target x', torch.tensor([low, 0., high]))
    _check_range('target x', torch.tensor([-1., 1.]))


def test_a_job_says_what_it_is_and_prints_no_images():
    job = Job('probe', 'arm', 'weights', 'data', 32, 'frozen', 1, 0, net='NET', images='IMAGES', search='SEARCH')
    assert 'arm' in repr(job) and not {'NET', 'IMAGES', 'SEARCH'} & {*repr(job).replace("'", ' ').split()}


@pytest.mark.parametrize('billions, fits', [(19, True), (21, False)])
def test_an_archive_may_take_twenty_gigabytes(billions, fits, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('x', 'x')
    monkeypatch.setattr(dl, '_zip_entries', lambda f: [('x', 'file', billions*10**9, None, None)])
    monkeypatch.setattr(dl, '_check_room', lambda *a: None)
    monkeypatch.setattr(dl, '_unpack_entry', lambda *a, **k: None)
    if fits: assert dl._unpack(tmp_path/'a.zip', tmp_path/'out', progress=False).is_dir()
    else:
        with pytest.raises(InputError, match='holds more than'): dl._unpack(tmp_path/'a.zip', tmp_path/'out', progress=False)


if __name__ == '__main__':
    made = drawn()
    np.savez_compressed(FILE, **{k: np.round(v).astype(np.uint8) if k in ('shapes', 'parts', 'objects', 'collages') else v.astype(np.float16 if k == 'boxes' else np.int16) for k,v in made.items()})
