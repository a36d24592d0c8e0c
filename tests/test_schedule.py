"A visible share that changes while it trains: seen by training alone, resumed to the bit, refused where it can't be."
import numpy as np
import pytest
from recon_nb.batches import fetch
from recon_nb.config import get_preset
from recon_nb.core import InputError
from recon_nb.shapes import draw_shapes
from recon_nb.state import toy_state
from recon_nb.training import train_gan

PHOTOS,_ = draw_shapes(60, size=48)
TINY = dict(preset='improved', size=32, width=4, width_dec=4, bs=16, epochs=5, progress=False)
WINDOW = dict(mask='window', visible=1/3, visible_from=.9)


def test_training_sees_it_and_the_held_out_photos_do_not():
    st = toy_state('improved', epochs=5, **WINDOW)
    seen = [1-fetch(st, st.train[:4], epoch=e, augment=True).hidden.float().mean().item() for e in range(5)]
    assert seen == sorted(seen, reverse=True) and seen[0] == (28/32)**2 and seen[-1] == (10/32)**2
    for e in (0, 4): assert 1-fetch(st, st.valid[:4], epoch=e).hidden.float().mean().item() == (10/32)**2


@pytest.mark.parametrize('mixed', [False, True])
def test_resumed_to_the_bit(tmp_path, mixed):
    how = TINY | WINDOW | dict(visible_mixed=mixed)
    whole = train_gan(PHOTOS, run_dir=tmp_path/'whole', **how)
    part = train_gan(PHOTOS, run_dir=tmp_path/'part', hooks=lambda st: setattr(st, 'stop', st.step == 7), **how)
    assert part.step == 7
    again = train_gan(PHOTOS, run_dir=tmp_path/'part', resume=True, progress=False)
    assert np.array_equal(again.transform(PHOTOS[:5]), whole.transform(PHOTOS[:5]))
    shares = [r.get('visible') for r in again.history]
    if mixed: assert set(shares) == {None}, 'no share is that of a step'
    else: assert (shares[0], shares[-1]) == (.9, .3333) and shares == sorted(shares, reverse=True)
    assert shares == [r.get('visible') for r in whole.history]
    plain = train_gan(PHOTOS, run_dir=tmp_path/'plain', **{**how, 'visible_from': 0., 'visible_mixed': False})
    assert not np.array_equal(plain.transform(PHOTOS[:5]), whole.transform(PHOTOS[:5]))


@pytest.mark.parametrize('wrong, says', [
    (dict(preset='paper-sb', visible_from=.9), "Choose view='canvas'"),
    (dict(visible_mixed=True), 'visible_mixed=True has no effect'),
    (dict(visible=.4, visible_from=.4), 'visible_from=0.4 has no effect'),
    (dict(mask='window', target='gradients', visible=.3, visible_from=.98), 'visible_from=0.98 with mask'),
    (dict(visible_from=1.), r'it must be in \[0, 1\)')])
def test_refused_before_anything_is_computed(tmp_path, wrong, says):
    with pytest.raises(InputError, match=says): train_gan(PHOTOS, run_dir=tmp_path/'run', **TINY | wrong)
    assert not (tmp_path/'run').exists()


def test_all_presets_have_one_share():
    assert {get_preset(p).visible_from for p in ('paper-sb', 'improved', 'improved-gan')} == {0.}
