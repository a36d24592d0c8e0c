"The encoder as a step of scikit-learn: its own checks, and ours for what those can't know, because photos are no table of numbers."
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
from packaging.version import Version
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.utils import estimator_checks

from recon_nb import export_encoder, train_gan
from recon_nb.core import InputError
from recon_nb.estimator import ReconFeatures
from recon_nb.shapes import draw_shapes

X, Y = draw_shapes(24, size=40, seed=1)


@pytest.fixture(scope='module')
def run(tmp_path_factory): return train_gan(draw_shapes(24, size=40)[0], 'improved', run_dir=tmp_path_factory.mktemp('sk')/'run', size=32, width=4, width_dec=4, bs=8, epochs=1, progress=False)


@pytest.fixture
def step(run): return ReconFeatures(str(run.dir))


CHECKS = '''check_parameters_default_constructible check_no_attributes_set_in_init check_get_params_invariance check_set_params check_do_not_raise_errors_in_init_or_set_param
    check_estimator_cloneable check_estimator_repr check_valid_tag_types check_estimator_tags_renamed check_mixin_order'''.split()


@pytest.mark.parametrize('name', CHECKS)
def test_scikit_learns_own_checks(name, step):
    check = getattr(estimator_checks, name, None)
    if check is None: pytest.skip('not in this version of scikit-learn')
    check('ReconFeatures', step)


@pytest.mark.skipif(Version(sklearn.__version__) < Version('1.6'), reason='before 1.6 scikit-learn tries tables of numbers on everything')
def test_all_that_scikit_learn_finds_to_check(step):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                    # "can't test an estimator that takes no table": those are below
        estimator_checks.check_estimator(step)


def test_what_the_checks_ask_of_others(step):
    before, seen = step.get_params(), X.copy()
    with pytest.raises(Exception, match='not fitted'): clone(step).transform(X)
    out = step.fit(X, Y).transform(X)
    assert step.fit(X) is step and np.array_equal(step.fit_transform(X), out)                          # again: the same
    assert step.get_params() == before and np.array_equal(X, seen)                                     # nothing of the caller's is changed
    assert out.dtype == np.float32 and out.shape == (24, 32) and np.isfinite(out).all()
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(step.transform(X[order]), out[order], atol=1e-5)                        # a row depends on its photo alone
    np.testing.assert_allclose(np.concatenate([step.transform(X[i:i+5]) for i in range(0, 24, 5)]), out, atol=1e-5)
    again = pickle.loads(pickle.dumps(step))
    assert np.array_equal(again.transform(X), out) and len(pickle.dumps(step)) < 1000
    assert [*step.get_feature_names_out()[:2]] == ['reconfeatures0', 'reconfeatures1'] and len(step.get_feature_names_out()) == 32
    assert step.set_output(transform='pandas').transform(X).shape == (24, 32)


def test_photos_as_people_have_them(step, run, tmp_path):
    paths = []
    for i, p in enumerate(X[:4]): Image.fromarray(p).save(tmp_path/f'{i}.png'); paths.append(tmp_path/f'{i}.png')
    want = step.fit(X).transform(X[:4])
    text = list(map(str, paths))
    for given in (paths, text, np.array(text), np.array(text, dtype=object)[:,None], pd.Series(text), pd.DataFrame(dict(path=text)), [Image.open(p) for p in paths], list(X[:4])):
        np.testing.assert_allclose(step.transform(given), want, atol=1e-5)
    table = pd.DataFrame(dict(path=text, of=['a', 'b', 'a', 'b']))
    np.testing.assert_allclose(ColumnTransformer([('f', step, ['path'])]).fit_transform(table), want, atol=1e-5)
    for source in (run, export_encoder(run, tmp_path/'e.safetensors'), run.dir):
        np.testing.assert_allclose(ReconFeatures(source).fit(X).transform(X[:4]), want, atol=1e-5)


@pytest.mark.parametrize('stage, side, n', [(1, 1, 4), (-1, 1, 32), (-1, 2, 128), ((1, 4), 1, 36), ((1, -1), 2, 16+128), (-1, None, 32*4)])
def test_stages_and_places(stage, side, n, step):
    step.set_params(stage=stage, side=side).fit(X)
    assert step.transform(X[:3]).shape == (3, n) == (3, len(step.get_feature_names_out()))


def test_a_grid_over_stages_and_a_crossed_prediction(step, tmp_path):
    model = Pipeline([('f', step), ('c', LogisticRegression(max_iter=300))], memory=str(tmp_path))
    two = Y % 2
    search = GridSearchCV(model, dict(f__stage=[1, -1, (1, -1)], c__C=[.1, 1.]), cv=2, error_score='raise').fit(X, two)
    assert search.best_params_.keys() == {'f__stage', 'c__C'} and np.isfinite(search.cv_results_['mean_test_score']).all()
    assert cross_val_predict(model, list(X), two, cv=2).shape == (24,)


@pytest.mark.parametrize('wrong, says', [(np.zeros((3,4)), r'array of float64 with shape \(3, 4\)'), ('a.jpg', 'one path'), ([], 'no photos'), (['none.jpg'], 'no such file'),
                                         (pd.DataFrame(dict(a=[1, 2])), 'array of int64'), ([3, 4], 'is not a photo')])
def test_what_is_no_photo_is_refused(wrong, says, step):
    with pytest.raises(InputError, match=says): step.fit(wrong)


def test_another_encoder_under_the_same_name(step, run):
    from recon_nb.checkpoint import load_tensors, save_tensors
    f, path = step.fit(X), run.dir/'weights.safetensors'
    kept = path.read_bytes()
    tensors, state = load_tensors(path)
    tensors['enc.conv1.0.weight'] = tensors['enc.conv1.0.weight']*2
    save_tensors(path, tensors, state)
    try:
        with pytest.raises(InputError, match='has changed since this was fitted'): f.transform(X)
        assert f.fit(X).transform(X).shape == (24, 32)
    finally: path.write_bytes(kept)
    for run_, stage, says in ((None, -1, 'which encoder'), ('nowhere', -1, 'nowhere'), (str(run.dir), 9, 'stage')):
        with pytest.raises(InputError, match=says): ReconFeatures(run_, stage).fit(X)


def test_photos_of_more_than_8_bits_need_one_range(step, tmp_path):
    "Found in each batch anew, it would be one for training and another for what comes later."
    paths = []
    for i, top in enumerate((1000, 4000)):
        Image.fromarray(np.linspace(0, top, 1600).reshape(40, 40).astype(np.uint16)).save(tmp_path/f'{i}.png'); paths.append(tmp_path/f'{i}.png')
    step.fit(paths)
    with warnings.catch_warnings(), pytest.raises(InputError, match=r'more than 8 bits .*window=\('):
        warnings.simplefilter('ignore')
        step.transform(paths)
    step.set_params(window=(0, 4095)).fit(paths)
    alone, both = step.transform(paths[:1]), step.transform(paths)
    np.testing.assert_allclose(alone[0], both[0], atol=1e-5)
