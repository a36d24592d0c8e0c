"""Ways to break a correct classification pipeline, for test_guards.py. Nothing here comes from, or knows of, recon_nb.guards."""
from types import SimpleNamespace

import numpy as np
import torch
from recon_nb.shapes import SHAPES, draw_shapes


def sound_set(seed=0, n=300, m=200, tint=(1., 1., 1.)):
    "A correct set. `tint` gives it a colour cast, so that swapping red and blue is a fault at all."
    (x,y), (u,v) = draw_shapes(n, size=32, seed=1000+2*seed), draw_shapes(m, size=32, seed=1001+2*seed)
    dye = lambda p: np.round(p*np.array(tint)).astype(np.uint8)
    return SimpleNamespace(train_x=dye(x), train_y=y, test_x=dye(u), test_y=v, classes=SHAPES)


def changed(d, **new): return SimpleNamespace(**{**vars(d), **new})


def rows(d, split, index): return changed(d, **{f'{split}_x': getattr(d, f'{split}_x')[index], f'{split}_y': getattr(d, f'{split}_y')[index]})


def by_class(d): return rows(d, 'test', np.argsort(d.test_y, kind='stable'))


# what -> (the break, the check that must name it first, a word of its sentence)
DATA = {
    'base 1 in train': (lambda d: changed(d, train_y=d.train_y+1), 'labels', 'train labels count from 1'),
    'base 1 in test': (lambda d: changed(d, test_y=d.test_y+1), 'labels', 'test labels count from 1'),
    'base 1 in both': (lambda d: changed(d, train_y=d.train_y+1, test_y=d.test_y+1), 'labels', 'subtract 1'),
    'base 1, folded': (lambda d: changed(d, test_y=(d.test_y+1) % 10), 'train to test', 'shifted by 1'),
    'base 1, folded, in files sorted by class': (lambda d: by_class(changed(d, test_y=(d.test_y+1) % 10)), 'train to test', 'shifted by 1'),
    'classes sorted by name in one split': (lambda d: changed(d, test_y=np.argsort(np.argsort(SHAPES))[d.test_y]), 'train to test', 'in another order'),
    'train labels shuffled': (lambda d: changed(d, train_y=np.random.default_rng(3).permutation(d.train_y)), 'pairs in train', 'in train the labels'),
    'test labels shuffled': (lambda d: changed(d, test_y=np.random.default_rng(3).permutation(d.test_y)), 'pairs in test', 'in test the labels'),
    'both shuffled': (lambda d: changed(d, train_y=np.random.default_rng(3).permutation(d.train_y), test_y=np.random.default_rng(4).permutation(d.test_y)),
                      'pairs in train', 'in train nor in test'),
    'off by one in train': (lambda d: changed(d, train_x=d.train_x[1:], train_y=d.train_y[:-1]), 'pairs in train', 'a row lost'),
    'off by one in test': (lambda d: changed(d, test_x=np.roll(d.test_x, 1, 0)), 'pairs in test', 'a row lost'),
    'one label too few': (lambda d: changed(d, test_y=d.test_y[:-1]), 'labels', 'labels: one file is cut off'),
    'labels as floats': (lambda d: changed(d, train_y=d.train_y.astype(np.float32)), 'labels', 'float32'),
    'labels one-hot': (lambda d: changed(d, train_y=np.eye(10, dtype=np.int64)[d.train_y]), 'labels', 'One-hot'),
    'unlabelled images': (lambda d: changed(d, train_y=np.where(np.arange(len(d.train_y)) < 9, -1, d.train_y)), 'labels', 'from -1'),
    'one class in test': (lambda d: rows(d, 'test', np.flatnonzero(np.isin(d.test_y, [3])).repeat(3)), 'labels', 'test has no image of class'),
    'a class lost from train': (lambda d: rows(d, 'train', d.train_y != 7), 'labels', 'train has no image of class [7]'),
    'test cut from sorted files': (lambda d: rows(d, 'test', np.argsort(d.test_y, kind='stable')[np.r_[:60, 60:200:12]]), 'class shares', 'of test'),
    'test in 0..1': (lambda d: changed(d, test_x=(d.test_x/255).astype(np.float32)), 'pixels', 'multiplied by 255'),
    'train in -1..1': (lambda d: changed(d, train_x=(d.train_x/127.5-1).astype(np.float32)), 'pixels', 'scaled from 0..255 to -1..1'),
    'test scaled twice': (lambda d: changed(d, train_x=(d.train_x/255).astype(np.float32), test_x=(d.test_x/255/255).astype(np.float32)), 'pixels', 'multiplied by 255'),
    'red and blue swapped in test': (lambda d: changed(d, test_x=d.test_x[...,::-1].copy()), 'pixels', 'red and blue swapped'),
    'another size in test': (lambda d: changed(d, test_x=d.test_x[:,4:-4,4:-4].copy()), 'pixels', 'differ in shape'),
    'test images in train': (lambda d: changed(d, train_x=np.r_[d.train_x, d.test_x[:50]], train_y=np.r_[d.train_y, d.test_y[:50]]), 'copies', '50 test images'),
}


class Pipeline:
    "A correct pipeline, but for what is asked: a small network on 8x8 means of the pixels."
    def __init__(self, *, lr=1e-2, passes=10, batch_norm=True, sgd=False, dropout=0., training=False, bad_fit=None, bad_input=None, bad_answer=None, shuffle=True, noise=None):
        self.__dict__.update({k: v for k,v in locals().items() if k != 'self'})

    def inputs(self, x, bad=None):
        t = torch.as_tensor(np.ascontiguousarray(x)).permute(0,3,1,2).float()
        t = t if bad == 'unscaled' else t/255/255 if bad == 'twice' else t.flip(1)/255-.5 if bad == 'bgr' else .5-t/255 if bad == 'negative' else t/255-.5
        return torch.nn.functional.avg_pool2d(t, 4).flatten(1)

    def fit(self, x, y, watch=None):
        torch.manual_seed(5)
        net = torch.nn.Sequential(torch.nn.Linear(192, 64), torch.nn.BatchNorm1d(64) if self.batch_norm else torch.nn.Identity(), torch.nn.ReLU(),
                                  torch.nn.Dropout(self.dropout), torch.nn.Linear(64, 10))
        xs, ys, net.seen = self.inputs(x, self.bad_fit), torch.as_tensor(y).long(), []
        if self.bad_fit == 'slipped': ys = ys[torch.randperm(len(ys))]
        if self.bad_fit == 'other labels': ys = self.noise
        opt = (torch.optim.SGD if self.sgd else torch.optim.Adam)(net.parameters(), lr=self.lr)
        for _ in range(self.passes):
            order = torch.randperm(len(xs)) if self.shuffle else torch.arange(len(xs))
            for k in order.split(50):
                loss = torch.nn.functional.cross_entropy(net(xs[k]), ys[k])
                opt.zero_grad(); loss.backward()
                if self.bad_fit != 'no step': opt.step()
                net.seen.append(loss.item())
            if watch: watch(net)
        return net

    def predict(self, net, x):
        was = net.training
        net.train(self.training)
        with torch.no_grad(): scores = net(self.inputs(x, self.bad_input))
        net.train(was)
        return self.decode(scores.argmax(1).numpy())

    def decode(self, best):
        if self.bad_answer == 'base': return best+1
        return np.array([3,1,4,0,5,9,2,6,8,7])[best] if self.bad_answer == 'names' else best


# what -> (the pipeline, whether its losses are given, the check that must name it first, a word of its sentence)
CODE = {
    'pixels unscaled in both': (dict(bad_fit='unscaled', bad_input='unscaled', batch_norm=False, sgd=True, lr=.3), False, 'over-fit 32', 'learns them if the images are scaled'),
    'pixels unscaled in predict': (dict(bad_input='unscaled'), False, 'over-fit 32', '`predict` knows them if the images are'),
    'pixels scaled twice in predict': (dict(bad_input='twice'), False, 'over-fit 32', 'prepare images differently'),
    'red and blue swapped in predict': (dict(bad_input='bgr'), False, 'over-fit 32', 'red and blue swapped'),
    'batch norm in training mode': (dict(training=True), False, 'steady answers', 'batch norm is in training mode'),
    'dropout in training mode': (dict(training=True, dropout=.5, batch_norm=False, passes=30), False, 'steady answers', 'dropout is still on'),
    'learning rate far too high': (dict(lr=1e3, batch_norm=False), False, 'over-fit 32', 'too high'),
    'learning rate to infinity': (dict(lr=1e38, batch_norm=False, sgd=True), False, 'over-fit 32', 'no number any more'),
    'learning rate to infinity, with losses': (dict(lr=1e38, batch_norm=False, sgd=True), True, 'over-fit 32', 'the loss is not a number'),
    'learning rate far too high, with losses': (dict(lr=1e3, batch_norm=False), True, 'over-fit 32', 'the loss rose'),
    'learning rate too low': (dict(lr=4e-5), False, 'over-fit 32', 'too low'),
    'learning rate far too low': (dict(lr=1e-8), False, 'over-fit 32', 'far too low'),
    'nothing is updated': (dict(bad_fit='no step'), False, 'over-fit 32', 'optimiser does not get the parameters'),
    'another preparation in predict, with losses': (dict(bad_input='negative'), True, 'over-fit 32', 'so `fit` has learned them'),
    'labels slip inside fit': (dict(bad_fit='slipped'), False, 'over-fit 32', 'labels part from the images'),
    'answers from base 1': (dict(bad_answer='base'), False, 'over-fit 32', 'each answer is +1'),
    'answers by other names': (dict(bad_answer='names'), False, 'over-fit 32', 'another list of classes'),
}
