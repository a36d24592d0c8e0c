"What a third reading found in runs, probes and tables: silent units, records of other questions, what a resumed run leaves behind."
import shutil

import numpy as np
import pytest
import torch

from recon_nb import probe, train_gan
from recon_nb.advice import advise
from recon_nb.checkpoint import _epoch_file, _epoch_files
from recon_nb.compare import compare_runs
from recon_nb.config import get_preset
from recon_nb.contenders import as_contender
from recon_nb.core import InputError, append_jsonl, read_jsonl
from recon_nb.cost import predict_seconds
from recon_nb.devices import _check_share, _explain_memory, _launched_as
from recon_nb.encoder import Encoder
from recon_nb.export import export_encoder, load_pretrained
from recon_nb.finetune import Recipe, augment, finetune, fit_paper_head
from recon_nb.run import GANRun
from recon_nb.segmentation import _settle, make_head
from recon_nb.shapes import draw_shapes
from recon_nb.tables import summarize

TINY = dict(size=32, width=4, bs=4, progress=False, device='cpu')


@pytest.fixture(scope='module')
def photos(): return draw_shapes(24, size=32)[0]


@pytest.fixture(scope='module')
def kept(photos, tmp_path_factory):
    return train_gan(photos, 'paper-sb', epochs=2, keep_every=1, run_dir=tmp_path_factory.mktemp('kept')/'run', **TINY)


def test_what_never_varied_in_training_is_ignored_afterwards():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 1] > 0).long()
    x[:, 0] = 0.
    head = fit_paper_head(x, y, classes=2, lr=1e-3, seed=0, steps=60)
    fires = x.clone()
    fires[:, 0] = .5
    assert torch.equal(head(fires), head(x)) and head(x).abs().max() < 100
    enc = Encoder(4)
    maps = [m.detach().clone() for m in enc.features(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))]
    maps[0][:, 0] = 0.
    norms = _settle(make_head(enc, 3, size=32), maps).norms
    assert norms[0](maps[0])[:, 0].abs().max() == 0 == norms[0](maps[0]+.1)[:, 0].abs().max()
    assert .5 < norms[0](maps[0])[:, 1].std() < 4


def test_advice_takes_over_no_record_of_another_question(tmp_path, photos, monkeypatch):
    x = draw_shapes(300, size=32)[0]
    how = dict(targets=('pixels',), updates=200, bs=8, progress=False, device='cpu', out=tmp_path/'adv')
    monkeypatch.setattr('recon_nb.advice._fit_time', lambda *args: pytest.fail('updates are given'))
    monkeypatch.setattr('recon_nb.advice._pretrain', lambda *args: None)             # as after Ctrl-C, before any run was finished
    for width in (8, 4):
        with monkeypatch.context() as m:
            m.setattr('recon_nb.advice.append_jsonl', lambda f, *rs: [append_jsonl(f, r) for r in rs if r['kind'] != 'plan'])
            advise(x, width=width, **how)
    seen = [r for r in read_jsonl(tmp_path/'adv'/'advice.jsonl') if r['what'] == 'random weights']
    assert len(seen) == 2 and len({r['question'] for r in seen}) == 2 and seen[0]['spread'] != seen[1]['spread']


def records_of(arm, accuracies, seeds, **more):
    return [dict(schema=1, kind='probe', arm=arm, job=dict(arm=arm), source={}, weights=f'{arm}', mode='knn', data='d', size=32, classes=4, labels_per_class=None,
                 n_train=8, n_test=100, seed=s, test_accuracy=a, train_accuracy=1., chance=.25, per_class=[a]*4, histogram=[25]*4, **more)
            for s, a in zip(seeds, accuracies, strict=True)]


def test_one_record_of_what_never_varies_stands_beside_each_of_the_others():
    rows = records_of('mine', [.8], [0]) + records_of('random weights', [.6, .7, .7, .7, .7], range(5))
    cell = summarize(rows).set_index('arm').loc['mine']
    assert cell['diff'] == pytest.approx(12) and cell.low < 12 < cell.high
    every = records_of('mine', [.8]*5, range(5)) + rows[1:]                         # as `compare_encoders` writes them
    assert summarize(every).set_index('arm').loc['mine', ['diff', 'low', 'high']].tolist() == pytest.approx(cell[['diff', 'low', 'high']].tolist())


def test_a_run_that_died_before_its_first_checkpoint_begins_with_its_weights_again(kept, photos, tmp_path, monkeypatch):
    how = dict(init=kept.dir/'weights.safetensors', epochs=1)
    whole = train_gan(photos, 'paper-sb', run_dir=tmp_path/'whole', **how, **TINY)
    def die(st): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr('recon_nb.trainer.save', die)
        train_gan(photos, 'paper-sb', run_dir=tmp_path/'dead', **how, **TINY)
    assert (tmp_path/'dead'/'config.json').exists() and not (tmp_path/'dead'/'weights.safetensors').exists()
    again = train_gan(photos, run_dir=tmp_path/'dead', resume=True, progress=False, device='cpu')
    assert all(torch.equal(a, b) for a, b in zip(whole.encoder.state_dict().values(), again.encoder.state_dict().values()))


def test_a_resumed_run_keeps_no_pictures_of_epochs_that_were_undone(photos, tmp_path):
    stop = lambda st: setattr(st, 'stop', True) if st.event == 'epoch' and st.epoch == 2 else None
    run = train_gan(photos, 'paper-sb', epochs=6, run_dir=tmp_path/'run', hooks=stop, **TINY)
    samples = run.dir/'samples'
    for epoch in (5, 6): shutil.copyfile(_epoch_file(samples, 2, '.png'), _epoch_file(samples, epoch, '.png'))
    shutil.copyfile(_epoch_file(samples, 2, '.webp'), _epoch_file(samples, 5, '.webp'))
    again = train_gan(photos, run_dir=run.dir, resume=True, epochs=3, progress=False, device='cpu')
    assert again.stopped == '' and [*_epoch_files(samples, '.png')] == [*_epoch_files(samples, '.webp')] == [1, 2, 3] == again.snapshots()[0]


def test_a_stop_in_the_last_update_ends_nothing_early(photos, tmp_path):
    def late(st): st.stop = st.event == 'step' and st.step == st.total_steps or st.stop
    assert train_gan(photos, 'paper-sb', max_steps=2, run_dir=tmp_path/'run', hooks=late, **TINY).stopped == ''
    def early(st): st.stop = st.event == 'step' and st.step == 1 or st.stop
    assert train_gan(photos, 'paper-sb', max_steps=2, run_dir=tmp_path/'early', hooks=early, **TINY).stopped == 'hook'


def test_seconds_include_the_step_they_are_read_in(photos, tmp_path):
    run = train_gan(photos, 'paper-sb', max_steps=1, run_dir=tmp_path/'run', **TINY)
    assert run.history[-1]['seconds'] > 0


def test_held_out_photos_are_the_same_whatever_they_are_cut_to(tmp_path):
    from PIL import Image
    (tmp_path/'photos').mkdir()
    for i, x in enumerate(draw_shapes(24, size=64)[0]): Image.fromarray(x).save(tmp_path/'photos'/f'{i}.png')
    def trained(name, **more): return train_gan(str(tmp_path/'photos'), 'improved', max_steps=1, run_dir=tmp_path/name, **TINY, **more)
    a, b, c = trained('runs/a'), trained('runs/b', store=64, scale=.5), trained('runs/c', seed=1)
    assert a.info['fingerprint'] != b.info['fingerprint']
    says = lambda *runs: any('held out different photos' in n for n in compare_runs(*runs).notes)
    assert not says(a, b) and says(a, c)


def test_a_probe_writes_into_no_file_of_a_run(kept, tmp_path):
    data = draw_shapes(60, size=32)
    for name in ('metrics.jsonl', 'history.jsonl'):
        before = (kept.dir/name).read_bytes()
        with pytest.raises(InputError, match='is a file of the run in'):
            probe(kept, data, mode='knn', labels_per_class=2, seeds=1, out=kept.dir/name, progress=False)
        assert (kept.dir/name).read_bytes() == before


def test_the_cost_of_a_batch_in_parts_can_be_predicted():
    machine = dict(flops=1e11, bandwidth=1e10)
    def seconds(**how): return predict_seconds(get_preset('improved', size=32, width=4, bs=48, **how), 480, **machine)
    assert seconds(accumulate=3) == pytest.approx(seconds(), rel=.35) and seconds(accumulate=16) > 0


def test_advice_for_memory_can_be_followed():
    for processes, parts in ((8, False), (4, True), (1, True)):
        with pytest.raises(InputError) as e:
            with _explain_memory(8, 32, 'bf16', 'cpu', 1, processes): raise MemoryError
        assert ('accumulate=2' in str(e.value)) == parts
        if parts: _check_share(8, processes, 2)


def test_a_parent_that_cannot_be_asked_is_unknown(monkeypatch):
    import psutil
    def refuse(self): raise psutil.AccessDenied(1)
    monkeypatch.setattr(psutil.Process, 'parent', refuse)
    assert _launched_as() == []


def test_what_a_folder_is_all_agree_on(kept, tmp_path):
    (tmp_path/'only').mkdir()
    export_encoder(kept, tmp_path/'only'/'encoder.safetensors')
    assert as_contender(tmp_path/'only').size == load_pretrained(tmp_path/'only').preprocess.size == 32
    shutil.copytree(kept.dir, tmp_path/'run')
    export_encoder(kept, tmp_path/'run'/'model.safetensors')
    assert as_contender(tmp_path/'run', part='disc').source['part'] == 'disc'      # still a run, with its discriminator
    assert as_contender(tmp_path/'run').run == tmp_path/'run'


def test_a_copy_among_kept_weights_is_passed_over(kept, tmp_path):
    shutil.copytree(kept.dir, tmp_path/'run')
    for folder, suffix in (('weights', '.safetensors'), ('samples', '.png')):
        shutil.copyfile(_epoch_file(kept.dir/folder, 2, suffix), tmp_path/'run'/folder/f'epoch-0002 copy{suffix}')
        shutil.copyfile(_epoch_file(kept.dir/folder, 2, suffix), tmp_path/'run'/folder/f'epoch-10000{suffix}')
        shutil.copyfile(_epoch_file(kept.dir/folder, 2, suffix), tmp_path/'run'/folder/f'epoch-9999{suffix}')
    run = GANRun.load(tmp_path/'run')
    assert run.kept == [1, 2, 9999, 10000] and run.show() is not None


def test_a_batch_of_one_is_refused_and_the_largest_shift_stays_inside(photos):
    for r, n in ((Recipe(bs=1, steps=1), 4), (Recipe(steps=1), 1)):
        with pytest.raises(InputError, match='needs two or more'): finetune(Encoder(4), photos[:n], np.arange(n) % 2, r, classes=2, seed=0)
    row = np.arange(6, dtype='uint8')[None, None, :, None].repeat(6, 1).repeat(3, 3)
    moved = augment(row, np.array([[.9, .5, .999]]), flip=False, shift=1.)
    assert moved[0, 0, :, 0].tolist() == [5, 4, 3, 2, 1, 0]


def test_a_backbone_of_timm_keeps_the_name_it_is_given(kept, tmp_path, monkeypatch):
    from recon_nb.cli import export
    asked = []
    monkeypatch.setattr('recon_nb.timm_folder.export_timm', lambda p, out: asked.append(out) or out)
    for words in ([], ['-o', str(tmp_path/'my_encoder.safetensors')]): assert export([str(kept.dir), '--timm', *words]) == 0
    assert asked == ['backbone', str(tmp_path/'my_encoder.safetensors')]
