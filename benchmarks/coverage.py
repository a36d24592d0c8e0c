"""How often do the intervals of `recon_nb.intervals` hold the truth?

`python benchmarks/coverage.py [OUT.jsonl]`, some minutes on one core. Worlds with a known truth,
as on the page nbs/73_intervals.ipynb: who is right about which photo depends on the pretraining,
on the labels, on how hard the photo is, on what each row is good at, on each pair of these, and
on the rest. A record a kind of world."""
import json
import sys
from itertools import chain

import numpy as np
from scipy.stats import norm

from recon_nb.core import append_jsonl
from recon_nb.intervals import crossed_interval

WORLDS = 2000
# pretrainings, label subsets, test photos
SHAPES = [(3, 3, 90), (3, 5, 90), (3, 5, 300), (3, 3, 1000), (3, 5, 3000), (5, 5, 1000)]
# the luck of pretrainings, of label subsets, and how much of an answer is of the moment:
# calm worlds are like frozen features, where equal labels say the same
LUCKS = [dict(sp=.03, ss=.05, noise=1.), dict(sp=.1, ss=.05, noise=1.),
         dict(sp=.03, ss=.15, noise=1.), dict(sp=0., ss=0., noise=1.),
         dict(sp=.03, ss=.05, noise=.3), dict(sp=.1, ss=.1, noise=.3)]


def play(rng, P, S, T, *, sp, ss, st=1., taste=.5, noise=1., a=None):
    """Who is right, ours less scratch, `P S T`; and the true difference.
    With `a`, the luck of the only pretraining, the truth about it."""
    n, pair = lambda size, *shape: size*rng.normal(size=shape), noise/3
    hard, labels = n(st, 1, 1, T), n(ss, 1, S, 1)
    own = n(sp, P, 1, 1) if a is None else a
    ours = (.4 + own + labels + hard + n(taste, 1, 1, T) + n(pair, P, 1, T)
            + n(pair, 1, S, T) + n(noise, P, S, T))
    theirs = (.2 + .7*labels + n(.7*ss, 1, S, 1) + hard + n(taste, 1, 1, T)
              + n(pair, 1, S, T) + n(noise, 1, S, T))
    rest = noise**2 + st**2 + taste**2
    vary, at = (sp**2, .4) if a is None else (0, .4+a)
    truth = (norm.cdf(at/(vary+ss**2+2*pair**2+rest)**.5)
             - norm.cdf(.2/(.98*ss**2+pair**2+rest)**.5))
    return (ours > 0)*1. - (theirs > 0), truth


def held(d, truth):
    "Is the truth in the interval, how wide is it, and is it in the one that forgets the photos?"
    _, low, high = crossed_interval(d)
    _, l, h = crossed_interval(d.mean(2))
    return low <= truth <= high, high-low, l <= truth <= h


def cell(shape, luck, worlds=WORLDS, seed=0):
    "The record of a kind of world."
    rng = np.random.default_rng(seed)
    found = np.array([held(*play(rng, *shape, **luck)) for _ in range(worlds)]).mean(0)
    of = dict(zip(('pretrainings', 'subsets', 'photos'), shape))
    return dict(schema=1, kind='coverage', **of, **luck, worlds=worlds,
                held=round(float(found[0]), 4),
                points=round(100*float(found[1]), 1), without_photos=round(float(found[2]), 4))


def alone(shape, luck, worlds=WORLDS, seed=0):
    "One pretraining: about this encoder, and about the method."
    rng, hits = np.random.default_rng(seed), np.zeros(2)
    method = play(np.random.default_rng(0), 1, 1, 1, **luck)[1]
    for _ in range(worlds):
        d, truth = play(rng, 1, *shape, a=luck['sp']*rng.normal(), **luck)
        hits += held(d, truth)[0], held(d, method)[0]
    return [dict(schema=1, kind='one pretraining', about=about, subsets=shape[0], photos=shape[1],
                 **luck, worlds=worlds, held=round(float(h), 4))
            for about, h in zip(('this encoder', 'the method'), hits/worlds)]


def main(out):
    records = (cell(s, k) for s in SHAPES for k in LUCKS)
    for r in chain(records, alone((5, 3000), dict(sp=.1, ss=.05, noise=.3))):
        append_jsonl(out, r)
        print(json.dumps(r), flush=True)


if __name__ == '__main__': main(sys.argv[1] if len(sys.argv) > 1 else 'coverage.jsonl')
